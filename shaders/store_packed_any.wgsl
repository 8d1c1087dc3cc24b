// Output $t in 16 bits, two to a u32: strides in pairs. The dim is even.
@group(0) @binding($b) var<storage, read_write> $t: array<u32>;

fn store_$t(row: u32, chunk: u32, x: vec4<f32>) {
    let e = row + chunk * 2u;
    let d = chunk * 4u;
    if (d < aux.params.$n_dim) { $t[e] = pack_pair(x.xy); }
    if (d + 2u < aux.params.$n_dim) { $t[e + 1u] = pack_pair(x.zw); }
}
