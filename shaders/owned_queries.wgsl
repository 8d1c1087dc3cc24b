// A workgroup owns queries and walks the keys that they see.
fn owned(s: Sequence) -> u32 {
    return s.queries;
}

fn first_walked(s: Sequence, own: u32) -> u32 {
    return first_key(s, own);
}

fn end_walked(s: Sequence, own: u32) -> u32 {
    return end_key(s, own);
}

fn end_of_tile(s: Sequence, first: u32, last: u32) -> u32 {
    return end_key(s, last);
}

fn scored(dot: f32, own: u32, walked: u32, in_range: bool) -> Scored {
    return score(dot, own, walked, in_range);
}
