// Output $t in 16 bits, four to a vec2<u32>: strides in fours.
@group(0) @binding($b) var<storage, read_write> $t: array<vec2<u32>>;

fn store_$t(row: u32, chunk: u32, x: vec4<f32>) {
    if (chunk < aux.params.$n_chunks) {
        $t[row + chunk] = vec2<u32>(pack_pair(x.xy), pack_pair(x.zw));
    }
}
