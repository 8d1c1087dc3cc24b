// The output in f32, any strides and any dim: strides in elements.
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn store_out(row: u32, chunk: u32, x: vec4<f32>) {
    let d = chunk * 4u;
    let s = aux.params.out.dim;
    let e = row + d * s;
    let n = aux.params.$n_dim;
    if (d < n) { out[e] = x.x; }
    if (d + 1u < n) { out[e + s] = x.y; }
    if (d + 2u < n) { out[e + 2u * s] = x.z; }
    if (d + 3u < n) { out[e + 3u * s] = x.w; }
}
