// What the gradient of q leaves for each token, f32, where it or what lies beside it in the workspace is written.
@group(0) @binding(6) var<storage, read_write> records: array<f32>;
