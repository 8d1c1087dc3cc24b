// A workgroup owns keys and walks the queries that see them. Keys that lie in memory and do not exist are seen by none.
fn owned(s: Sequence) -> u32 {
    return s.stored;
}

fn first_walked(s: Sequence, own: u32) -> u32 {
    return u32(max(i32(own) - s.hi_shift + 1, 0));
}

fn end_walked(s: Sequence, own: u32) -> u32 {
    return select(0u, u32(clamp(i32(own) - s.lo_shift + 1, 0, i32(s.queries))), own < s.keys);
}

fn end_of_tile(s: Sequence, first: u32, last: u32) -> u32 {
    return select(0u, end_walked(s, min(last, max(s.keys, 1u) - 1u)), first < s.keys);
}

fn scored(dot: f32, own: u32, walked: u32, in_range: bool) -> Scored {
    return score(dot, walked, own, in_range);
}
