// What a head-dim column contributes: nothing past the head dim.
fn within_head(chunk: u32, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(), x, chunk < aux.params.head_chunks);
}
