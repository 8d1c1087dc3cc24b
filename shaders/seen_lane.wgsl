// Which keys some row of the subgroup sees, where a bias or a mask may hide any: bit n of `seen` says key n was seen by this lane.
fn keep_key(seen: u32, lane: u32, in_range: bool) -> bool {
    return in_range && ((subgroupOr(seen) >> lane) & 1u) == 1u;
}
