// Linear attention with decay, chunk by chunk (Lightning attention, arXiv 2405.17381), for drivers that run on a CPU.
//
//   S_t = exp(g_t) S_{t-1} + k_t v_t^T,  out_t = scale q_t S_t
//
// A subgroup owns LANES / SHARES vec4 columns of the value dim and walks a segment's tokens LANES at a time, one a lane. The state's
// columns are in registers, STATE_ROWS of the key dim a lane: SHARES neighbouring lanes have one column's rows together. Inside a chunk
// scores stand for the state; between chunks the state does. All decays are exp of sums <= 0.

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
    let s = segment_at(item.segment);
    let head = item.head;
    begin_decay(head);
    let column = item.split * (LANES / SHARES) + lane / SHARES;   // of the value dim in vec4
    let share = lane % SHARES;
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ if OUT
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ end

    // Registers have no index: loops over them load and store by selection, since drivers compile one load fast and many slowly.
    //$ for d in 0..STATE_ROWS
    var state_$d = vec4<f32>();
    //$ end
    if (s.state0 != NONE) {
        for (var d = 0u; d < STATE_ROWS; d++) {
            let x = load_state(s, head, share * STATE_ROWS + d, column);
            //$ for d in 0..STATE_ROWS
            state_$d = select(state_$d, x, d == $du);
            //$ end
        }
    }

    var decay = 0.0;   // log decay of the whole segment
    for (var t0 = 0u; t0 < s.tokens; t0 += LANES) {
        let live = min(LANES, s.tokens - t0);
        // Lanes past the last token repeat it; they write nothing.
        let token = token_at(s, t0 + min(lane, live - 1u));
        chunk_decay(s, head, lane, t0, live);
        let at = decay_at(lane, live);
        let total = decay_total(live);
        decay += log_decay(total);
        let keep = exp(log_decay(total));
        let k_row = k_base + token * aux.params.k.seq;
        //$ for d in 0..HEAD_DIM step 8
        let k_pair_$d = load_pair_k(k_row, $du / 4u);
        let k_$d = within_head($du / 4u, k_pair_$d.a);
        let k_${d+4} = within_head($du / 4u + 1u, k_pair_$d.b);
        //$ end
        //$ for n in 0..LANES
        let v_$n = load_v(v_base + token_at(s, t0 + min($nu, live - 1u)) * aux.params.v.seq, column);
        //$ end

        //$ if OUT
        let q_row = q_base + token * aux.params.q.seq;
        //$ for n in 0..LANES
        var s_$n = 0.0;
        //$ end
        let read = exp(log_decay(at)) * aux.params.read_scale;
        //$ for d in 0..HEAD_DIM step 8
        let q_pair_$d = load_pair_q(q_row, $du / 4u);
        let q_$d = within_head($du / 4u, q_pair_$d.a);
        let q_${d+4} = within_head($du / 4u + 1u, q_pair_$d.b);
        //$ for n in 0..LANES
        s_$n += dot(q_$d, subgroupBroadcast(k_$d, $nu)) + dot(q_${d+4}, subgroupBroadcast(k_${d+4}, $nu));
        //$ end
        let read_$d = q_$d * read;
        let read_${d+4} = q_${d+4} * read;
        //$ end
        // A lane's row sees the tokens up to its own.
        //$ for n in 0..LANES
        let w_$n = select(0.0, s_$n * aux.params.score_scale * exp(log_decay_between(subgroupBroadcast(at, $nu), at)), $nu <= lane);
        //$ end

        //$ for r in 0..LANES
        var row_$r = vec4<f32>();
        //$ end
        //$ for r in 0..LANES step 4
        {
            //$ for m in 0..4
            var o_$m = vec4<f32>();
            //$ end
            //$ for d in 0..STATE_ROWS step 4
            //$ for m in 0..4
            {
                var b = subgroupBroadcast(read_$d, $ru + $mu);
                //$ if SHARED
                b = select(b, subgroupBroadcast(read_${d+64}, $ru + $mu), share == 1u);
                //$ end
                o_$m += b.x * state_$d + b.y * state_${d+1} + b.z * state_${d+2} + b.w * state_${d+3};
            }
            //$ end
            //$ end
            //$ if SHARED
            //$ for m in 0..4
            o_$m += subgroupShuffleXor(o_$m, 1u);
            //$ end
            //$ end
            //$ for n in 0..LANES
            //$ for m in 0..4
            o_$m += subgroupBroadcast(w_$n, $ru + $mu) * v_$n;
            //$ end
            //$ end
            row_$r = o_0;
            row_${r+1} = o_1;
            row_${r+2} = o_2;
            row_${r+3} = o_3;
        }
        //$ end
        for (var n = 0u; n < live; n++) {
            var row = row_0;
            //$ for r in 1..LANES
            row = select(row, row_$r, n == $ru);
            //$ end
            // One lane of a column stores; the others' chunk is past the end.
            let chunk = select(column, aux.params.value_chunks, share > 0u);
            store_out(out_base + token_at(s, t0 + n) * aux.params.out.seq, chunk, row);
        }
        //$ end

        let write = select(0.0, exp(log_decay_between(at, total)) * aux.params.write_scale, lane < live);
        //$ for d in 0..STATE_ROWS step 4
        {
            let w = k_$d * write;
            //$ if SHARED
            let other = k_${d+64} * write;
            //$ end
            state_$d *= keep;
            state_${d+1} *= keep;
            state_${d+2} *= keep;
            state_${d+3} *= keep;
            //$ for n in 0..LANES
            var b_$n = subgroupBroadcast(w, $nu);
            //$ if SHARED
            b_$n = select(b_$n, subgroupBroadcast(other, $nu), share == 1u);
            //$ end
            state_$d += b_$n.x * v_$n;
            state_${d+1} += b_$n.y * v_$n;
            state_${d+2} += b_$n.z * v_$n;
            state_${d+3} += b_$n.w * v_$n;
            //$ end
        }
        //$ end
    }

    //$ if STATE
    for (var d = 0u; d < STATE_ROWS; d++) {
        var row = state_0;
        //$ for d in 1..STATE_ROWS
        row = select(row, state_$d, d == $du);
        //$ end
        store_state(s, head, share * STATE_ROWS + d, column, row);
    }
    //$ if TOTAL
    store_total(s, head, decay);
    //$ end
    //$ end
}
