// Softmax attention of few rows over a stretch of many keys (Flash-Decoding; spec: merged by log-sum-exp) for drivers that run on a
// CPU, where loads are what costs. Partial results are merged by flash_merge.
//
//   m = max_j s_j,  l = sum_j exp(s_j - m),  o = sum_j exp(s_j - m) v_j   for each row, over the keys j of the stretch
//
// One subgroup a workgroup. Its ROWS rows share every load: each lane has a key of its own for the scores, the rows' q lying across the
// lanes; and value columns of its own for the output, the weights coming from the lanes of their keys.
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let item = item_at(workgroup, grid);
    if (!item.live) {
        return;
    }
    let s = sequence_at(item.record);
    let group = aux.params.group;
    let row = item.tile * ROWS;
    let last = s.queries * group - 1u;   // padding rows repeat the last one; they are never stored

    //$ for r in 0..ROWS
    let i_$r = min(row + $ru, last) / group;
    let head_$r = item.kv_head * group + min(row + $ru, last) % group;
    let lo_$r = first_key(s, i_$r);
    let seen_keys_$r = max(end_key(s, i_$r), lo_$r) - lo_$r;
    var m_$r = lowest();
    var l_$r = 0.0;   // of this lane's keys
    //$ for u in 0..Q_LOADS
    var q_$r_$u = vec4<f32>();
    //$ end
    //$ for p in 0..PAIRS
    var o_a_$r_$p = vec4<f32>();
    var o_b_$r_$p = vec4<f32>();
    //$ end
    //$ end
    // Registers have no index: the loop goes by selection, since drivers compile one load fast and many slowly.
    for (var r = 0u; r < ROWS; r++) {
        let q_at = q_row(s, item.kv_head, min(row + r, last));
        //$ for u in 0..Q_LOADS
        let q_$u = within_head($uu * LANES + lane, load_q(q_at, min($uu * LANES + lane, aux.params.head_chunks - 1u))) * aux.params.score_scale;
        //$ for r in 0..ROWS
        q_$r_$u = select(q_$r_$u, q_$u, r == $ru);
        //$ end
        //$ end
    }

    let k_first = k_base(s, item.kv_head);
    let v_first = v_base(s, item.kv_head);
    let column = item.split * VALUE_CHUNKS + 2u * lane;
    for (var j0 = item.first; j0 < item.end; j0 += LANES) {
        let j = min(j0 + lane, item.end - 1u);
        let k_at = k_row(k_first, s, j);
        let v_at = v_row(v_first, s, j);
        //$ for r in 0..ROWS
        var s_$r = 0.0;
        //$ end
        //$ for u in 0..Q_LOADS
        //$ for n in 0..Q_LANES step 2
        {
            let k = load_pair_k(k_at, $uu * LANES + $nu);
            let a = within_head($uu * LANES + $nu, k.a);
            let b = within_head($uu * LANES + ${n+1}u, k.b);
            //$ for r in 0..ROWS
            s_$r += dot(subgroupBroadcast(q_$r_$u, $nu), a) + dot(subgroupBroadcast(q_$r_$u, ${n+1}u), b);
            //$ end
        }
        //$ end
        //$ end

        var seen = 0u;   // whether some row sees this lane's key
        //$ for r in 0..ROWS
        var old_$r = 0.0;   // the weight of what came before
        {
            begin_scores(s, head_$r);
            let t = score(s_$r, i_$r, j, (j0 + lane - lo_$r < seen_keys_$r) & (j0 + lane < item.end));
            var top = select(m_$r, max(m_$r, t.value), t.visible);
            //$ for n in 0..LANES_LOG2
            top = max(top, subgroupShuffleXor(top, 1u << $nu));
            //$ end
            old_$r = weight(m_$r, top);
            s_$r = select(0.0, weight(t.value, top), t.visible);
            l_$r = l_$r * old_$r + s_$r;
            m_$r = top;
            seen |= select(0u, 1u, t.visible);
        }
        //$ end

        //$ for p in 0..PAIRS
        //$ for r in 0..ROWS
        o_a_$r_$p *= old_$r;
        o_b_$r_$p *= old_$r;
        //$ end
        //$ for n in 0..LANES
        {
            let v = load_pair_v(subgroupBroadcast(v_at, $nu), min(column + ${p}u * LANES * 2u, aux.params.value_chunks - 1u));
            let a = kept(v.a, subgroupBroadcast(seen, $nu));
            let b = kept(v.b, subgroupBroadcast(seen, $nu));
            //$ for r in 0..ROWS
            o_a_$r_$p += subgroupBroadcast(s_$r, $nu) * a;
            o_b_$r_$p += subgroupBroadcast(s_$r, $nu) * b;
            //$ end
        }
        //$ end
        //$ end
    }

    for (var r = 0u; (r < ROWS) & (row + r <= last); r++) {
        var m = m_0;
        var l = l_0;
        //$ for r in 1..ROWS
        m = select(m, m_$r, r == $ru);
        l = select(l, l_$r, r == $ru);
        //$ end
        //$ for n in 0..LANES_LOG2
        l += subgroupShuffleXor(l, 1u << $nu);
        //$ end
        let at = partial_at(item.kv_head, item.partial + r);
        //$ for p in 0..PAIRS
        {
            var a = o_a_0_$p;
            var b = o_b_0_$p;
            //$ for r in 1..ROWS
            a = select(a, o_a_$r_$p, r == $ru);
            b = select(b, o_b_$r_$p, r == $ru);
            //$ end
            let chunk = column + ${p}u * LANES * 2u;
            let end = min((item.split + 1u) * VALUE_CHUNKS, aux.params.value_chunks);
            if (chunk < end) {
                partials[at + chunk] = a;
            }
            if (chunk + 1u < end) {
                partials[at + chunk + 1u] = b;
            }
        }
        //$ end
        if ((lane == 0u) & (item.split == 0u)) {
            partials[at + aux.params.value_chunks] = vec4<f32>(m, l, 0.0, 0.0);
        }
    }
}
