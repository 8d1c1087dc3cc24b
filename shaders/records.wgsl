// What the gradient of q leaves for each token, f32.
@group(0) @binding(6) var<storage, read> records: array<f32>;
