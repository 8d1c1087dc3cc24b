// The gradient of the output where it lies beside the records of its queries.
fn load_grad_out(row: u32, chunk: u32) -> vec4<f32> {
    return rows[row + chunk];
}
