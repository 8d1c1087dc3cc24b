// The gradient of each row's log-sum-exp.
@group(0) @binding(3) var<storage, read> grad_lse: array<f32>;

fn incoming(batch: u32, head: u32, i: u32) -> f32 {
    let at = aux.params.grad_lse.offset + batch * aux.params.grad_lse.batch + head * aux.params.grad_lse.head
        + i * aux.params.grad_lse.seq;
    return grad_lse[at];
}
