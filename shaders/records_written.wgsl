// What the gradient of q leaves for each token, f32. Read and written, as all that lies in the workspace and is bound twice.
@group(0) @binding(6) var<storage, read_write> records: array<f32>;
