// What a value-dim column contributes: nothing past the value dim.
fn within_value(chunk: u32, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(), x, chunk < aux.params.value_chunks);
}
