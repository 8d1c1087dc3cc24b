// Tensor $t in 8 bits, four to a word: strides in fours. Each row is followed by what its numbers are multiplied by.
@group(0) @binding($b) var<storage, read> $t: array<u32>;

fn load_$t(row: u32, chunk: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8($t[row + chunk])) * bitcast<f32>($t[row + aux.params.$n / 4u]);
}
