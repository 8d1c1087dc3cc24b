// Tensor $t in f32, any strides and any dim: strides in elements. Elements past the dim read as zero.
@group(0) @binding($b) var<storage, read> $t: array<f32>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    let d = chunk * 4u;
    let s = aux.params.$t.dim;
    let e = row + d * s;
    let n = aux.params.$n;
    return vec4<f32>(
        select(0.0, $t[e], d < n),
        select(0.0, $t[e + s], d + 1u < n),
        select(0.0, $t[e + 2u * s], d + 2u < n),
        select(0.0, $t[e + 3u * s], d + 3u < n),
    );
}
