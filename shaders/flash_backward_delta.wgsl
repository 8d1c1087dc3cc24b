// The first pass of the backward pass of softmax attention: for each query
//
//   delta_i = sum_e dO_ie O_ie - dLSE_i
//
// and its log-sum-exp, side by side in one record, so that the passes over scores need one binding for both. An invocation a query and
// head.

@group(0) @binding(2) var<storage, read> lse: array<u32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = (aux.params.first + workgroup.x + workgroup.y * grid.x) * THREADS + thread;
    if (row >= aux.params.batches * aux.params.heads * aux.params.queries) {
        return;
    }
    let i = row % aux.params.queries;
    let head = aux.params.head_first + row / aux.params.queries % aux.params.heads;
    let batch = aux.params.batch_first + row / aux.params.queries / aux.params.heads;

    let out_row = aux.params.out.offset + batch * aux.params.out.batch + head * aux.params.out.head + i * aux.params.out.seq;
    let grad_row = aux.params.grad_out.offset + batch * aux.params.grad_out.batch + head * aux.params.grad_out.head
        + i * aux.params.grad_out.seq;
    let record = aux.params.rows.offset + batch * aux.params.rows.batch + head * aux.params.rows.head + i * aux.params.rows.seq;
    var delta = 0.0;
    for (var c = 0u; c < aux.params.value_chunks; c++) {
        let grad = load_grad_out(grad_row, c);
        // Of a row that sees no key the output is 0, and its gradient may be NaN.
        let out = load_out(out_row, c);
        delta += dot(out, select(grad, vec4<f32>(), out == vec4<f32>()));
        //$ if BESIDE
        rows[record + 1u + c] = grad;
        //$ end
    }
    //$ if INCOMING
    delta -= incoming(batch, head, i);
    //$ end
    // Nobody looks at the log-sum-exp of a row that sees no key, -inf.
    let bits = lse[aux.params.lse.offset + batch * aux.params.lse.batch + head * aux.params.lse.head + i * aux.params.lse.seq];
    rows[record] = vec4<f32>(select(bitcast<f32>(bits) * aux.params.lse_scale, 0.0, bits == 0xff800000u), delta, 0.0, 0.0);
}
