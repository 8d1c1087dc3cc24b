// Tensor $t in f32, rows of whole eights: strides in eights. 64-bit words, since CPU drivers load lane by lane and word by word.
@group(0) @binding($b) var<storage, read> $t: array<vec4<u64>>;

struct Pair_$t {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn load_pair_$t(row: u32, chunk: u32) -> Pair_$t {
    let w = $t[row + chunk / 2u];
    let even = vec4<u32>(w);
    let odd = vec4<u32>(w >> vec4<u32>(32u));
    return Pair_$t(bitcast<vec4<f32>>(vec4<u32>(even.x, odd.x, even.y, odd.y)), bitcast<vec4<f32>>(vec4<u32>(even.z, odd.z, even.w, odd.w)));
}

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let pair = load_pair_$t(row, chunk);
    return select(pair.a, pair.b, (chunk & 1u) == 1u);
}
