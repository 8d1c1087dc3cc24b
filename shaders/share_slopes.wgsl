// What the pass over the keys of a query has left.
fn share(record: vec4<f32>, head: u32) -> f32 {
    return record.z;
}
