// The log decay of one token.
fn token_decay(s: Segment, head: u32) -> f32 {
    return -bitcast<f32>(aux.words[aux.params.slopes + head]);
}
