// Softmax attention forward (FlashAttention, arXiv 2307.08691) for drivers that run on a CPU, where rows in registers pay.
//
//   out_i = sum_j exp(s_ij - LSE_i) v_j,  LSE_i = log sum_j exp(s_ij)
//
// LANES invocations a workgroup, each with ROWS queries: q, the running maximum m, the sum l and the output o stay in its registers.
// Keys come KEYS at a time, eight numbers a load: either the lanes share the loads through the subgroup, a lane for each eight dims of
// a key (KEY_ROWS = 1, GROUP vec4 of all keys at once), or every invocation loads them all (KEY_ROWS = KEYS). The composer fills in the
// names in capitals accordingly. Loads are what CPU drivers are slow at, so more rows a lane pay until their registers spill too far; of
// keys and values, four numbers of BLOCK keys are in registers at a time, and each number of a row is loaded once for all of them.
// A row's softmax needs no other invocation, the kernel no workgroup memory and no barrier.

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(LANE_BUILTIN) lane: u32,
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
    let column = item.split * VALUE_CHUNKS;

    // Padding rows repeat the last query; they are never stored. Registers have no index: the loop over rows that loads shifts them on,
    // the one that stores selects, since drivers compile one load fast and many slowly.
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    //$ for r in 0..ROWS
    let i_$r = min(first + $ru * LANES + lane, last);
    let lo_$r = first_key(s, i_$r);
    let seen_keys_$r = max(end_key(s, i_$r), lo_$r) - lo_$r;
    //$ for c in 0..HEAD_CHUNKS
    var q_$r_$c = vec4<f32>();
    //$ end
    //$ for c in 0..VALUE_CHUNKS
    var o_$r_$c = vec4<f32>();
    //$ end
    var m_$r = lowest();
    var l_$r = 0.0;
    //$ end
    for (var r = 0u; r < ROWS; r++) {
        let q_row = q_base + (s.q_start + min(first + r * LANES + lane, last)) * aux.params.q.seq;
        //$ for c in 0..HEAD_CHUNKS step 2
        {
            let q = load_pair_q(q_row, $cu);
            //$ for r in 0..LAST_ROW
            q_$r_$c = q_${r+1}_$c;
            q_$r_${c+1} = q_${r+1}_${c+1};
            //$ end
            //$ for r in LAST_ROW..ROWS
            q_$r_$c = within_head($cu, q.a) * aux.params.score_scale;
            q_$r_${c+1} = within_head(${c+1}u, q.b) * aux.params.score_scale;
            //$ end
        }
        //$ end
    }

    // Some row of the tile sees each key of [start, end). The body is one straight line: on CPU drivers a branch costs a blend for
    // every variable that it writes, more than masking all keys does.
    let start = first_key(s, first);
    let end = end_key(s, last);
    let kv_head = head / aux.params.group;
    let k_first = k_base(s, kv_head);
    let v_first = v_base(s, kv_head);

    for (var j0 = start; j0 < end; j0 += KEYS) {
        //$ for n in 0..KEY_ROWS
        let key_$n = min(j0 + LOADED_KEY, end - 1u);
        let k_row_$n = k_row(k_first, s, key_$n);
        let v_row_$n = v_row(v_first, s, key_$n);
        //$ end

        //$ for r in 0..ROWS
        //$ for n in 0..KEYS
        var s_$r_$n = 0.0;
        //$ end
        //$ end
        //$ for g in 0..HEAD_CHUNKS step GROUP
        {
            //$ for n in 0..KEY_ROWS
            let pair_$n = load_pair_k(k_row_$n, $gu + LOADED_CHUNK);
            let k_0_$n = within_head($gu + LOADED_CHUNK, pair_$n.a);
            let k_1_$n = within_head($gu + LOADED_CHUNK + 1u, pair_$n.b);
            //$ end
            //$ for c in g..g+GROUP step 2
            //$ for h in 0..2
            //$ for b in 0..KEYS step BLOCK
            {
                //$ for n in b..b+BLOCK
                let k_$n = SHARED(k_$h);
                //$ end
                //$ for r in 0..ROWS
                //$ for n in b..b+BLOCK
                s_$r_$n += dot(q_$r_${c+h}, k_$n);
                //$ end
                //$ end
            }
            //$ end
            //$ end
            //$ end
        }
        //$ end

        var seen = 0u;   // bit n: some row of this lane sees key n
        //$ for r in 0..ROWS
        var old_$r = 0.0;   // the weight of what came before
        {
            let at = j0 - lo_$r;   // wraps before the range, so that one comparison tells both ends
            var top = m_$r;
            //$ for n in 0..KEYS
            let t_$n = score(s_$r_$n, i_$r, j0 + $nu, at + $nu < seen_keys_$r);
            top = select(top, max(top, t_$n.value), t_$n.visible);
            seen |= select(0u, 1u << $nu, t_$n.visible);
            //$ end
            old_$r = weight(m_$r, top);
            var sum = 0.0;
            //$ for n in 0..KEYS
            s_$r_$n = select(0.0, weight(t_$n.value, top), t_$n.visible);
            sum += s_$r_$n;
            //$ end
            l_$r = l_$r * old_$r + sum;
            m_$r = top;
        }
        //$ end

        //$ for n in 0..KEY_ROWS
        let keep_$n = some_row_sees(seen, LOADED_KEY);
        //$ end
        //$ for g in 0..VALUE_CHUNKS step GROUP
        {
            //$ for n in 0..KEY_ROWS
            let pair_$n = load_pair_v(v_row_$n, column + $gu + LOADED_CHUNK);
            let v_0_$n = kept(pair_$n.a, keep_$n);
            let v_1_$n = kept(pair_$n.b, keep_$n);
            //$ end
            //$ for c in g..g+GROUP step 2
            //$ for h in 0..2
            //$ for b in 0..KEYS step BLOCK
            //$ if BLENDS_BITS
            // Each block but the first, less for what the condition skips than for LLVM, which blends vectors of 16 lanes bit by bit: an
            // output that was written before is no longer read when it is written again, so that both are one place in memory. Else each
            // step ends by copying all of them.
            //$ for z in BLOCK..b+1 step KEYS
            if (j0 + $bu < end)
            //$ end
            //$ end
            {
                //$ for n in b..b+BLOCK
                let v_$n = SHARED(v_$h);
                //$ end
                //$ for r in 0..ROWS
                {
                    var o = o_$r_${c+h};
                    // With the first block, what came before fades.
                    //$ for z in b..1
                    o *= old_$r;
                    //$ end
                    //$ for n in b..b+BLOCK
                    o += s_$r_$n * v_$n;
                    //$ end
                    o_$r_${c+h} = o;
                }
                //$ end
            }
            //$ end
            //$ end
            //$ end
        }
        //$ end
    }

    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ for g in 0..VALUE_CHUNKS step STORED
    for (var r = 0u; (r < ROWS) & (first + r * LANES + lane <= last); r++) {
        let i = first + r * LANES + lane;
        var m = m_0;
        var l = l_0;
        //$ for r in 1..ROWS
        m = select(m, m_$r, r == $ru);
        l = select(l, l_$r, r == $ru);
        //$ end
        let f = finish(m, l, head);
        let out_row = out_base + (s.q_start + i) * aux.params.out.seq;
        //$ for c in g..g+STORED
        {
            var x = o_0_$c;
            //$ for r in 1..ROWS
            x = select(x, o_$r_$c, r == $ru);
            //$ end
            store_out(out_row, column + $cu, x * f.scale);
        }
        //$ end
        if (item.split + $gu == 0u) {
            store_lse(s, head, i, f);
        }
    }
    //$ end
}
