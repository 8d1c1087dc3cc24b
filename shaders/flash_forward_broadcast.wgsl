// Softmax attention forward (FlashAttention, arXiv 2307.08691) for drivers that run on a CPU.
//
//   out_i = sum_j exp(s_ij - LSE_i) v_j,  LSE_i = log sum_j exp(s_ij)
//
// One subgroup a workgroup, LANES wide. A lane owns ROWS queries: q, the running maximum m, the sum l and the output o stay in
// its registers. Keys come LANES at a time: lane n loads a vec4 of key n, and each is broadcast to all lanes. A row's softmax
// needs no other lane, the kernel no workgroup memory and no barrier.

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
    let head = item.head;
    begin_scores(s, head);
    let first = item.tile * (LANES * ROWS);
    let last = min(first + LANES * ROWS, s.queries) - 1u;
    let column = item.split * (VALUE_CHUNKS);

    // Padding rows repeat the last query; they are never stored.
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    //$ for r in 0..ROWS
    let i_$r = min(first + $ru * LANES + lane, last);
    let lo_$r = first_key(s, i_$r);
    let seen_keys_$r = max(end_key(s, i_$r), lo_$r) - lo_$r;
    let q_row_$r = q_base + (s.q_start + i_$r) * aux.params.q.seq;
    //$ for c in 0..HEAD_CHUNKS step 2
    let q_pair_$r_$c = load_pair_q(q_row_$r, $cu);
    let q_$r_$c = within_head($cu, q_pair_$r_$c.a) * aux.params.score_scale;
    let q_$r_${c+1} = within_head(${c+1}u, q_pair_$r_$c.b) * aux.params.score_scale;
    //$ end
    //$ for c in 0..VALUE_CHUNKS
    var o_$r_$c = vec4<f32>();
    //$ end
    var m_$r = lowest();
    var l_$r = 0.0;
    //$ end

    // Some row of the tile sees each key of [start, end). The body is one straight line: on CPU drivers a branch costs a blend for
    // every variable that it writes, more than masking all keys does.
    let start = first_key(s, first);
    let end = end_key(s, last);
    let kv_head = head / aux.params.group;
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + kv_head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + kv_head * aux.params.v.head;

    for (var j0 = start; j0 < end; j0 += LANES) {
        let j = s.k_start + min(j0 + lane, end - 1u);
        let k_row = k_base + j * aux.params.k.seq;
        let v_row = v_base + j * aux.params.v.seq;

        //$ for r in 0..ROWS
        //$ for n in 0..LANES
        var s_$r_$n = 0.0;
        //$ end
        //$ end
        //$ for c in 0..HEAD_CHUNKS step 2
        {
            let k = load_pair_k(k_row, $cu);
            let k_a = within_head($cu, k.a);
            let k_b = within_head(${c+1}u, k.b);
            //$ for n in 0..LANES
            {
                let b = subgroupBroadcast(k_a, $nu);
                //$ for r in 0..ROWS
                s_$r_$n += dot(q_$r_$c, b);
                //$ end
            }
            //$ end
            //$ for n in 0..LANES
            {
                let b = subgroupBroadcast(k_b, $nu);
                //$ for r in 0..ROWS
                s_$r_$n += dot(q_$r_${c+1}, b);
                //$ end
            }
            //$ end
        }
        //$ end

        var seen = 0u;   // bit n: some row of this lane sees key n
        //$ for r in 0..ROWS
        var old_$r = 0.0;   // the weight of what came before
        {
            let at = j0 - lo_$r;   // wraps before the range, so that one comparison tells both ends
            var top = m_$r;
            //$ for n in 0..LANES
            let t_$n = score(s_$r_$n, i_$r, j0 + $nu, at + $nu < seen_keys_$r);
            top = select(top, max(top, t_$n.value), t_$n.visible);
            seen |= select(0u, 1u << $nu, t_$n.visible);
            //$ end
            old_$r = weight(m_$r, top);
            var sum = 0.0;
            //$ for n in 0..LANES
            s_$r_$n = select(0.0, weight(t_$n.value, top), t_$n.visible);
            sum += s_$r_$n;
            //$ end
            l_$r = l_$r * old_$r + sum;
            m_$r = top;
        }
        //$ end

        let keep = some_row_sees(seen, lane);
        //$ for c in 0..VALUE_CHUNKS step 2
        {
            let v = load_pair_v(v_row, column + $cu);
            let v_a = kept(v.a, keep);
            let v_b = kept(v.b, keep);
            //$ for r in 0..ROWS
            var a_$r = o_$r_$c * old_$r;
            var b_$r = o_$r_${c+1} * old_$r;
            //$ end
            //$ for n in 0..LANES
            {
                let b = subgroupBroadcast(v_a, $nu);
                //$ for r in 0..ROWS
                a_$r += s_$r_$n * b;
                //$ end
            }
            //$ end
            //$ for n in 0..LANES
            {
                let b = subgroupBroadcast(v_b, $nu);
                //$ for r in 0..ROWS
                b_$r += s_$r_$n * b;
                //$ end
            }
            //$ end
            //$ for r in 0..ROWS
            o_$r_$c = a_$r;
            o_$r_${c+1} = b_$r;
            //$ end
        }
        //$ end
    }

    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ for r in 0..ROWS
    if (first + $ru * LANES + lane <= last) {
        let f = finish(m_$r, l_$r, head);
        let out_row = out_base + (s.q_start + i_$r) * aux.params.out.seq;
        //$ for c in 0..VALUE_CHUNKS
        store_out(out_row, column + $cu, o_$r_$c * f.scale);
        //$ end
        if (item.split == 0u) {
            store_lse(s, head, i_$r, f);
        }
    }
    //$ end
}
