// Values as they are, each of which weighs 1.
fn value_scale(s: Segment, head: u32, token: u32) -> f32 {
    return 1.0;
}

fn value_weight(s: Segment, head: u32, token: u32) -> f32 {
    return 1.0;
}

fn chunk_weight(s: Segment, head: u32, t0: u32, tokens: u32) -> f32 {
    return f32(tokens);
}
