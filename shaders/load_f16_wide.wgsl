// Tensor $t in f16, eight to a vec2<u64>: strides in eights. 64-bit words, since CPU drivers load lane by
// lane and word by word.
@group(0) @binding($b) var<storage, read> $t: array<vec2<u64>>;

struct Pair_$t {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn load_pair_$t(row: u32, chunk: u32) -> Pair_$t {
    let pairs = $t[row + chunk / 2u];
    let low = vec2<u32>(pairs);
    let high = vec2<u32>(pairs >> vec2<u32>(32u));
    let w = vec4<u32>(low.x, high.x, low.y, high.y);
    return Pair_$t(
        vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)),
        vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)),
    );
}

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let pair = load_pair_$t(row, chunk);
    return select(pair.a, pair.b, (chunk & 1u) == 1u);
}
