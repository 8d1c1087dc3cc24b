// A constant log decay a token: its sums over the tokens of a chunk, from the start to a token (its own included), after a token to the
// end of the chunk's `live` tokens, after a token to a later one, and over all.
fn chunk_decay(s: Segment, head: u32, thread: u32, live: u32) {}

fn decay_from_start(at: u32) -> f32 {
    return -slope * f32(at + 1u);
}

fn decay_to_end(at: u32, live: u32) -> f32 {
    return -slope * f32(live - 1u - min(at, live - 1u));
}

fn place_at(at: u32) -> u32 {
    return at;
}

fn decay_between(place: u32, later: u32) -> f32 {
    return -slope * f32(later - min(place, later));
}

fn decay_total(live: u32) -> f32 {
    return -slope * f32(live);
}
