// The states that segments start from, f32.
@group(0) @binding(4) var<storage, read> state0: array<f32>;
