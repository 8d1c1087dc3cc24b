// The log decay of one token.
@group(0) @binding(6) var<storage, read> gate: array<f32>;

fn token_decay(s: Segment, head: u32) -> f32 {
    return gate[aux.params.gate.offset + s.batch * aux.params.gate.batch + head * aux.params.gate.head];
}
