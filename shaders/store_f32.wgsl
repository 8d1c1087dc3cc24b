// Output $t in f32, rows of whole vec4: strides in vec4.
@group(0) @binding($b) var<storage, read_write> $t: array<vec4<f32>>;

fn store_$t(row: u32, chunk: u32, x: vec4<f32>) {
    if (chunk < aux.params.$n_chunks) {
        $t[row + chunk] = x;
    }
}
