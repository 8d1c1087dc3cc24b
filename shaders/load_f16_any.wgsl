// Tensor $t in f16, two to a u32: strides in pairs. Pairs past the dim, which is even, read as zero.
@group(0) @binding($b) var<storage, read> $t: array<u32>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let e = row + chunk * 2u;
    let d = chunk * 4u;
    let w = vec2<u32>(select(0u, $t[e], d < aux.params.$n), select(0u, $t[e + 1u], d + 2u < aux.params.$n));
    return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));
}
