// The output in f32, rows of whole vec4: strides in vec4.
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

fn store_out(row: u32, chunk: u32, x: vec4<f32>) {
    if (chunk < aux.params.$n_chunks) {
        out[row + chunk] = x;
    }
}
