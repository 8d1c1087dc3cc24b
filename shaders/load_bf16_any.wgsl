// Tensor $t in bf16, two to a u32: strides in pairs. Pairs past the dim, which is even, read as zero.
@group(0) @binding($b) var<storage, read> $t: array<u32>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let e = row + chunk * 2u;
    let d = chunk * 4u;
    let w = vec2<u32>(select(0u, $t[e], d < aux.params.$n), select(0u, $t[e + 1u], d + 2u < aux.params.$n));
    return vec4<f32>(bitcast<f32>(w.x << 16u), bitcast<f32>(w.x & 0xffff0000u), bitcast<f32>(w.y << 16u), bitcast<f32>(w.y & 0xffff0000u));
}
