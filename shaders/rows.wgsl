@group(0) @binding(4) var<storage, read> rows: array<vec4<f32>>;
