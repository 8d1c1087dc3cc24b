// Which keys some row of the workgroup sees, where only ranges mask: those below the tile's end, which loads and loops respect.
fn keep_key(seen: u32, lane: u32, in_range: bool) -> bool {
    return in_range;
}
