// Where the head dim is a whole class.
fn within_head(chunk: u32, x: vec4<f32>) -> vec4<f32> {
    return x;
}
