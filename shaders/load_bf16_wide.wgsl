// Tensor $t in bf16, eight to a vec4<u32>: strides in eights.
@group(0) @binding($b) var<storage, read> $t: array<vec4<u32>>;

struct Pair_$t {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn load_pair_$t(row: u32, chunk: u32) -> Pair_$t {
    let w = $t[row + chunk / 2u];
    return Pair_$t(
        vec4<f32>(bitcast<f32>(w.x << 16u), bitcast<f32>(w.x & 0xffff0000u), bitcast<f32>(w.y << 16u), bitcast<f32>(w.y & 0xffff0000u)),
        vec4<f32>(bitcast<f32>(w.z << 16u), bitcast<f32>(w.z & 0xffff0000u), bitcast<f32>(w.w << 16u), bitcast<f32>(w.w & 0xffff0000u)),
    );
}

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let pair = load_pair_$t(row, chunk);
    return select(pair.a, pair.b, (chunk & 1u) == 1u);
}
