// The log decay over a whole segment.
fn segment_decay(segment: u32, head: u32) -> f32 {
    return -slope * f32(segment_at(segment).tokens);
}
