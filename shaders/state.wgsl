// The states that segments end in, f32.
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
