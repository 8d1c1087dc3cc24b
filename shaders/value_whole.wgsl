// Where the value dim is a whole class.
fn within_value(chunk: u32, x: vec4<f32>) -> vec4<f32> {
    return x;
}
