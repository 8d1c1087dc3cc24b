// A sink is a logit without a value: what its weight in a row has is the row's delta.
fn share(record: vec4<f32>, head: u32) -> f32 {
    return -weight(bitcast<f32>(aux.words[aux.params.sinks + head]), record.x) * record.y;
}
