// Which keys some row of the subgroup sees, where a bias or a mask may hide any: bit n of `seen` says key n was seen by this lane.
// By shuffles, since Mesa 22.3's llvmpipe computes subgroupOr wrongly.
fn keep_key(seen: u32, lane: u32, in_range: bool) -> bool {
    var all = seen;
    //$ for n in 0..LANES_LOG2
    all |= subgroupShuffleXor(all, 1u << $nu);
    //$ end
    return in_range && ((all >> lane) & 1u) == 1u;
}
