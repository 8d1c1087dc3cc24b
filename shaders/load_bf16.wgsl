// Tensor $t in bf16, four to a vec2<u32>: strides in fours.
@group(0) @binding($b) var<storage, read> $t: array<vec2<u32>>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let w = $t[row + chunk];
    return vec4<f32>(bitcast<f32>(w.x << 16u), bitcast<f32>(w.x & 0xffff0000u), bitcast<f32>(w.y << 16u), bitcast<f32>(w.y & 0xffff0000u));
}
