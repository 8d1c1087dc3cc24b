// The log decay from a chunk's start to place `at`, and over its `live` tokens.
fn chunk_decay(s: Segment, head: u32, thread: u32, t0: u32, live: u32) {}

fn decay_at(at: u32, live: u32) -> f32 {
    return -slope * (f32(at) + aux.params.forward);
}

fn decay_total(live: u32) -> f32 {
    return -slope * f32(live);
}
