// Tensor $t in f16, four to a vec2<u32>: strides in fours.
@group(0) @binding($b) var<storage, read> $t: array<vec2<u32>>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let w = $t[row + chunk];
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}
