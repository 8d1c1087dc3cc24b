// The states that segments start from, f32, in the workspace, of which another part is written.
@group(0) @binding(4) var<storage, read_write> state0: array<f32>;
