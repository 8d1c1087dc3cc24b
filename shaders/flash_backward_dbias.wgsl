// The gradient of an additive bias, the same as that of the scores after it:
//
//   dbias_ij = p_ij (dO_i . v_j - delta_i),  p_ij = exp(s_ij - LSE_i)
//
// summed over the batch entries and heads that share the bias, in order. A workgroup has a square of queries and keys, an invocation a
// block of 4 x 4 of it in registers: rows TILE / 4 apart, so that neighbours read and write side by side.

@group(0) @binding(3) var<storage, read_write> dbias: array<f32>;

const TILE: u32 = 32u;
const SIDE: u32 = TILE / 4u;

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
    let key_tiles = (aux.params.keys + TILE - 1u) / TILE;
    let query_tiles = (aux.params.queries + TILE - 1u) / TILE;
    let j0 = p % key_tiles * TILE + thread % SIDE;
    let i0 = p / key_tiles % query_tiles * TILE + thread / SIDE;
    let plane = p / key_tiles / query_tiles;
    let heads = aux.params.heads / aux.params.shared_heads;
    let first_batch = aux.params.batch_first + plane / heads * aux.params.shared_batches;
    let first_head = aux.params.head_first + plane % heads * aux.params.shared_heads;

    //$ for r in 0..4
    //$ for k in 0..4
    var sum_$r_$k = 0.0;
    //$ end
    //$ end
    for (var n = 0u; n < aux.params.shared_batches * aux.params.shared_heads; n++) {
        let s = sequence_at(first_batch + n / aux.params.shared_heads - aux.params.batch_first);
        let head = first_head + n % aux.params.shared_heads;
        begin_scores(s, head);
        //$ for r in 0..4
        let i_$r = min(i0 + $ru * SIDE, aux.params.queries - 1u);
        let record_$r = record_at(s, head, i_$r);
        //$ for k in 0..4
        var s_$r_$k = 0.0;
        var e_$r_$k = 0.0;
        //$ end
        //$ end
        let kv_head = head / aux.params.group;
        let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
        let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + kv_head * aux.params.k.head;
        let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + kv_head * aux.params.v.head;
        //$ for k in 0..4
        let j_$k = min(j0 + $ku * SIDE, aux.params.keys - 1u);
        //$ end
        for (var c = 0u; c < aux.params.head_chunks; c++) {
            //$ for k in 0..4
            let k_$k = load_k(k_base + j_$k * aux.params.k.seq, c);
            //$ end
            //$ for r in 0..4
            {
                let q = load_q(q_base + i_$r * aux.params.q.seq, c);
                //$ for k in 0..4
                s_$r_$k += dot(q, k_$k);
                //$ end
            }
            //$ end
        }
        for (var c = 0u; c < aux.params.value_chunks; c++) {
            //$ for k in 0..4
            let v_$k = load_v(v_base + j_$k * aux.params.v.seq, c);
            //$ end
            //$ for r in 0..4
            {
                let grad = load_grad_out(record_$r + 1u, c);
                //$ for k in 0..4
                e_$r_$k += dot(grad, v_$k);
                //$ end
            }
            //$ end
        }
        //$ for r in 0..4
        {
            let record = rows[record_$r];
            let lo = first_key(s, i_$r);
            let end = end_key(s, i_$r);
            //$ for k in 0..4
            {
                let t = score(s_$r_$k * aux.params.score_scale, i_$r, j_$k, (j_$k >= lo) & (j_$k < end));
                sum_$r_$k += select(0.0, weight(t.value, record.x) * (e_$r_$k - record.y), t.visible);
            }
            //$ end
        }
        //$ end
    }

    let base = aux.params.dbias.offset + first_batch * aux.params.dbias.batch + first_head * aux.params.dbias.head;
    //$ for r in 0..4
    //$ for k in 0..4
    if ((i0 + $ru * SIDE < aux.params.queries) & (j0 + $ku * SIDE < aux.params.keys)) {
        let at = base + (i0 + $ru * SIDE) * aux.params.dbias.query + (j0 + $ku * SIDE) * aux.params.dbias.key;
        var total = sum_$r_$k;
        if (aux.params.accumulate == 1u) {
            total += dbias[at];
        }
        dbias[at] = total;
    }
    //$ end
    //$ end
}
