// Output $t in f32, any strides and any dim: strides in elements.
@group(0) @binding($b) var<storage, read_write> $t: array<f32>;

fn store_$t(row: u32, chunk: u32, x: vec4<f32>) {
    let d = chunk * 4u;
    let s = aux.params.$t.dim;
    let e = row + d * s;
    let n = aux.params.$n_dim;
    if (d < n) { $t[e] = x.x; }
    if (d + 1u < n) { $t[e + s] = x.y; }
    if (d + 2u < n) { $t[e + 2u * s] = x.z; }
    if (d + 3u < n) { $t[e + 3u * s] = x.w; }
}
