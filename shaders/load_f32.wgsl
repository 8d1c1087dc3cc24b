// Tensor $t in f32, rows of whole vec4: strides in vec4.
@group(0) @binding($b) var<storage, read> $t: array<vec4<f32>>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    return $t[row + chunk];
}
