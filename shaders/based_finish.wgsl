// What a sum of weighted values is multiplied by, given the sum of its weights. Without keys it is 0, and so is the output.
fn finish(total: f32) -> f32 {
    let z = total + aux.params.eps;
    return select(1.0, select(0.0, 1.0 / z, z > 0.0), aux.params.normalize == 1u);
}
