// The partial results of a row over its stretches of keys, made one:
//
//   m = max_n m_n,  l = sum_n l_n exp(m_n - m),  o = sum_n o_n exp(m_n - m) / l
//
// One workgroup a row of one head, in the order of the list: the same bits whatever else is in the batch. A stretch of which the row
// saw no key has a sum of zero, and no weight. A sink enters here, once.
@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;

fn partial_at(kv_head: u32, partial: u32) -> u32 {
    return (kv_head * aux.params.partials + partial) * (aux.params.value_chunks + 1u);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let p = aux.params.first + workgroup.x + workgroup.y * grid.x;
    if (p >= aux.params.last) {
        return;
    }
    let kv_heads = aux.params.heads / aux.params.group;
    let kv_head = aux.params.head_first / aux.params.group + p % kv_heads;
    let entry = aux.params.list + 4u * (p / kv_heads);
    let s = sequence_at($work[entry]);
    let i = $work[entry + 1u] / aux.params.group;
    let head = kv_head * aux.params.group + $work[entry + 1u] % aux.params.group;
    let first = aux.params.list + $work[entry + 2u];
    let end = first + $work[entry + 3u];

    let sums = aux.params.value_chunks;
    var m = lowest();
    for (var n = first; n < end; n++) {
        let part = partials[partial_at(kv_head, $work[n]) + sums];
        m = select(m, max(m, part.x), part.y > 0.0);
    }
    var l = 0.0;
    for (var n = first; n < end; n++) {
        let part = partials[partial_at(kv_head, $work[n]) + sums];
        l += part.y * weight(part.x, m);
    }
    let f = finish(m, l, head);
    let out_row = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head + (s.q_start + i) * aux.params.out.seq;
    for (var c = thread; c < aux.params.value_chunks; c += THREADS) {
        var o = vec4<f32>();
        for (var n = first; n < end; n++) {
            let at = partial_at(kv_head, $work[n]);
            let part = partials[at + sums];
            o += weight(part.x, m) * partials[at + c];
        }
        store_out(out_row, c, o * f.scale);
    }
    if (thread == 0u) {
        store_lse(s, head, i, f);
    }
}
