// The output in 16 bits, four to a vec2<u32>: strides in fours.
@group(0) @binding(3) var<storage, read_write> out: array<vec2<u32>>;

fn store_out(row: u32, chunk: u32, x: vec4<f32>) {
    if (chunk < aux.params.$n_chunks) {
        out[row + chunk] = vec2<u32>(pack_pair(x.xy), pack_pair(x.zw));
    }
}
