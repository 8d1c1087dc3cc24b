@group(0) @binding(4) var<storage, read_write> rows: array<vec4<f32>>;
