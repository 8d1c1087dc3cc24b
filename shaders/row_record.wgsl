// What the backward pass knows of each query, one record a head: its log-sum-exp in the unit of weights, its delta, and in `z` a
// part of the gradient of its head's ALiBi slope, which all parts make together. The gradient of the output may lie beside it, from the second vec4 on.
fn record_at(s: Sequence, head: u32, i: u32) -> u32 {
    return aux.params.rows.offset + s.batch * aux.params.rows.batch + head * aux.params.rows.head
        + (s.q_start + i) * aux.params.rows.seq;
}
