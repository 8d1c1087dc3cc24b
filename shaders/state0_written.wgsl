// The states that segments start from, f32. They are not written, but may lie in the workspace beside records that are.
@group(0) @binding(4) var<storage, read_write> state0: array<f32>;
