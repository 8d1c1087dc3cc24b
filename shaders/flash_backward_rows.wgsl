// The backward pass of softmax attention (FlashAttention-2, arXiv 2307.08691) for drivers that run on a CPU, where rows in registers pay.
//
//   p_ij = exp(s_ij - LSE_i),  ds_ij = p_ij (dO_i . v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i,  dv_j = sum_i p_ij dO_i
//
// Either a workgroup owns queries and walks the keys that they see, for dq; or it owns keys and walks the queries that see them, of all
// heads that share these keys, for dk and dv. What is owned stays in registers with its gradient, ROWS rows an invocation; what is walked
// comes KEYS rows at a time as in flash_forward_rows.wgsl, is kept for the products that follow, and is loaded once. No sum crosses
// workgroups. $OWN and $WALKED are q and k, or k and q; $PAIR_OWN and $PAIR_WALKED the gradient of the output and v, or the reverse.

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
    let first = item.tile * (LANES * ROWS);
    let last = min(first + LANES * ROWS, owned(s)) - 1u;

    // Padding rows repeat the last one; they are never stored.
    //$ for r in 0..ROWS
    let n_$r = min(first + $ru * LANES + lane, last);
    let lo_$r = first_walked(s, n_$r);
    let seen_$r = max(end_walked(s, n_$r), lo_$r) - lo_$r;
    //$ for c in 0..HEAD_CHUNKS
    var own_$r_$c = vec4<f32>();
    //$ if GRADIENT
    var sum_$r_$c = vec4<f32>();
    //$ end
    //$ end
    //$ for c in 0..VALUE_CHUNKS
    //$ if GRADIENT
    var pair_$r_$c = vec4<f32>();
    //$ end
    //$ if VALUES
    var value_$r_$c = vec4<f32>();
    //$ end
    //$ end
    //$ if OWNS_QUERIES
    var record_$r = vec2<f32>();
    //$ end
    //$ if SLOPES
    var slope_$r = 0.0;
    //$ end
    //$ end
    let own_base = aux.params.$OWN.offset + s.batch * aux.params.$OWN.batch + item.head * aux.params.$OWN.head + OWN_START * aux.params.$OWN.seq;
    let pair_base = aux.params.$PAIR_OWN.offset + s.batch * aux.params.$PAIR_OWN.batch + item.head * aux.params.$PAIR_OWN.head
        + OWN_START * aux.params.$PAIR_OWN.seq;
    for (var r = 0u; r < ROWS; r++) {
        let n = min(first + r * LANES + lane, last);
        let own_row = own_base + n * aux.params.$OWN.seq;
        //$ for c in 0..HEAD_CHUNKS step 2
        let own_$c = load_pair_$OWN(own_row, $cu);
        let own_a_$c = within_head($cu, own_$c.a) * aux.params.score_scale;
        let own_b_$c = within_head(${c+1}u, own_$c.b) * aux.params.score_scale;
        //$ for r in 0..ROWS
        own_$r_$c = select(own_$r_$c, own_a_$c, r == $ru);
        own_$r_${c+1} = select(own_$r_${c+1}, own_b_$c, r == $ru);
        //$ end
        //$ end
        //$ if GRADIENT
        let pair_row = pair_base + n * aux.params.$PAIR_OWN.seq;
        //$ for c in 0..VALUE_CHUNKS step 2
        let pair_$c = load_pair_$PAIR_OWN(pair_row, $cu);
        let pair_a_$c = within_value($cu, pair_$c.a);
        let pair_b_$c = within_value(${c+1}u, pair_$c.b);
        //$ for r in 0..ROWS
        pair_$r_$c = select(pair_$r_$c, pair_a_$c, r == $ru);
        pair_$r_${c+1} = select(pair_$r_${c+1}, pair_b_$c, r == $ru);
        //$ end
        //$ end
        //$ end
        //$ if OWNS_QUERIES
        let record = rows[record_at(s, item.head, n)].xy;
        //$ for r in 0..ROWS
        record_$r = select(record_$r, record, r == $ru);
        //$ end
        //$ end
    }

    let start = first_walked(s, first);
    let end = end_of_tile(s, first, last);
    //$ if OWNS_KEYS
    for (var head = item.head * aux.params.group; head < (item.head + 1u) * aux.params.group; head++) {
    let walked_head = head;
    //$ end
    //$ if OWNS_QUERIES
    let head = item.head;
    let walked_head = head / aux.params.group;
    //$ end
    begin_scores(s, head);
    let walked_base = aux.params.$WALKED.offset + s.batch * aux.params.$WALKED.batch + walked_head * aux.params.$WALKED.head
        + WALKED_START * aux.params.$WALKED.seq;
    let other_base = aux.params.$PAIR_WALKED.offset + s.batch * aux.params.$PAIR_WALKED.batch + walked_head * aux.params.$PAIR_WALKED.head
        + WALKED_START * aux.params.$PAIR_WALKED.seq;

    // One straight line: on CPU drivers a branch costs a blend for every variable that it writes.
    for (var w0 = start; w0 < end; w0 += KEYS) {
        //$ for n in 0..KEY_ROWS
        let w_$n = min(w0 + LOADED_KEY, end - 1u);
        let walked_row_$n = walked_base + w_$n * aux.params.$WALKED.seq;
        let other_row_$n = other_base + w_$n * aux.params.$PAIR_WALKED.seq;
        //$ if OWNS_KEYS
        let query_$n = rows[record_at(s, head, w_$n)].xy;
        //$ end
        //$ end

        //$ for r in 0..ROWS
        //$ for n in 0..KEYS
        var s_$r_$n = 0.0;
        var e_$r_$n = 0.0;
        //$ end
        //$ end
        //$ for g in 0..HEAD_CHUNKS step GROUP
        //$ for n in 0..KEY_ROWS
        let walked_$g_$n = load_pair_$WALKED(walked_row_$n, $gu + LOADED_CHUNK);
        var a_0_$g_$n = within_head($gu + LOADED_CHUNK, walked_$g_$n.a);
        var a_1_$g_$n = within_head($gu + LOADED_CHUNK + 1u, walked_$g_$n.b);
        //$ end
        //$ for c in g..g+GROUP step 2
        //$ for h in 0..2
        {
            //$ for n in 0..KEYS
            let c_$n = SHARED(a_$h_$g);
            //$ end
            //$ for r in 0..ROWS
            //$ for n in 0..KEYS
            s_$r_$n += dot(own_$r_${c+h}, c_$n);
            //$ end
            //$ end
        }
        //$ end
        //$ end
        //$ end
        //$ for g in 0..VALUE_CHUNKS step GROUP
        //$ for n in 0..KEY_ROWS
        let other_$g_$n = load_pair_$PAIR_WALKED(other_row_$n, $gu + LOADED_CHUNK);
        var x_0_$g_$n = within_value($gu + LOADED_CHUNK, other_$g_$n.a);
        var x_1_$g_$n = within_value($gu + LOADED_CHUNK + 1u, other_$g_$n.b);
        //$ end
        //$ if GRADIENT
        //$ for c in g..g+GROUP step 2
        //$ for h in 0..2
        {
            //$ for n in 0..KEYS
            let c_$n = SHARED(x_$h_$g);
            //$ end
            //$ for r in 0..ROWS
            //$ for n in 0..KEYS
            e_$r_$n += dot(pair_$r_${c+h}, c_$n);
            //$ end
            //$ end
        }
        //$ end
        //$ end
        //$ end
        //$ end

        // Weights take the place of scores, gradients of scores that of the other products.
        var seen = 0u;   // bit n: some row of this lane sees row n
        //$ for n in 0..KEYS
        {
            //$ if OWNS_KEYS
            let record = QUERY_RECORD;
            //$ end
            //$ for r in 0..ROWS
            {
                //$ if OWNS_QUERIES
                let record = record_$r;
                //$ end
                let t = scored(s_$r_$n, n_$r, w0 + $nu, w0 + $nu - lo_$r < seen_$r);
                s_$r_$n = select(0.0, weight(t.value, record.x), t.visible);
                let ds = select(0.0, s_$r_$n * (e_$r_$n - record.y), t.visible);
                //$ if SLOPES
                slope_$r -= ds * distance_of(n_$r, w0 + $nu);
                //$ end
                e_$r_$n = ds * t.slope;
                seen |= select(0u, 1u << $nu, t.visible);
            }
            //$ end
        }
        //$ end

        //$ for n in 0..KEY_ROWS
        let keep_$n = some_row_sees(seen, LOADED_KEY);
        //$ end
        //$ if GRADIENT
        //$ for g in 0..HEAD_CHUNKS step GROUP
        //$ for n in 0..KEY_ROWS
        a_0_$g_$n = kept(a_0_$g_$n, keep_$n);
        a_1_$g_$n = kept(a_1_$g_$n, keep_$n);
        //$ end
        //$ end
        //$ for g in 0..HEAD_CHUNKS step GROUP
        //$ for c in g..g+GROUP step 2
        //$ for h in 0..2
        {
            //$ for n in 0..KEYS
            let c_$n = SHARED(a_$h_$g);
            //$ end
            //$ for r in 0..ROWS
            {
                var sum = sum_$r_${c+h};
                //$ for n in 0..KEYS
                sum += e_$r_$n * c_$n;
                //$ end
                sum_$r_${c+h} = sum;
            }
            //$ end
        }
        //$ end
        //$ end
        //$ end
        //$ end
        //$ if VALUES
        //$ for g in 0..VALUE_CHUNKS step GROUP
        //$ for n in 0..KEY_ROWS
        x_0_$g_$n = kept(x_0_$g_$n, keep_$n);
        x_1_$g_$n = kept(x_1_$g_$n, keep_$n);
        //$ end
        //$ end
        //$ for g in 0..VALUE_CHUNKS step GROUP
        //$ for c in g..g+GROUP step 2
        //$ for h in 0..2
        {
            //$ for n in 0..KEYS
            let c_$n = SHARED(x_$h_$g);
            //$ end
            //$ for r in 0..ROWS
            {
                var sum = value_$r_${c+h};
                //$ for n in 0..KEYS
                sum += s_$r_$n * c_$n;
                //$ end
                value_$r_${c+h} = sum;
            }
            //$ end
        }
        //$ end
        //$ end
        //$ end
        //$ end
    }
    //$ if OWNS_KEYS
    }
    //$ end

    // Registers have no index: stores go by selection, since drivers compile one of them fast and many slowly.
    for (var r = 0u; (r < ROWS) & (first + r * LANES + lane <= last); r++) {
        let n = first + r * LANES + lane;
        //$ if GRADIENT
        //$ for c in 0..HEAD_CHUNKS
        var row_$c = sum_0_$c;
        //$ for r in 1..ROWS
        row_$c = select(row_$c, sum_$r_$c, r == $ru);
        //$ end
        //$ end
        let result_row = aux.params.$RESULT.offset + s.batch * aux.params.$RESULT.batch + item.head * aux.params.$RESULT.head
            + (OWN_START + n) * aux.params.$RESULT.seq;
        for (var c = 0u; c < HEAD_CHUNKS; c++) {
            var x = row_0;
            //$ for c in 1..HEAD_CHUNKS
            x = select(x, row_$c, c == $cu);
            //$ end
            store_$RESULT(result_row, c, x * aux.params.gradient_scale);
        }
        //$ end
        //$ if VALUES
        //$ for c in 0..VALUE_CHUNKS
        var values_$c = value_0_$c;
        //$ for r in 1..ROWS
        values_$c = select(values_$c, value_$r_$c, r == $ru);
        //$ end
        //$ end
        let dv_row = aux.params.dv.offset + s.batch * aux.params.dv.batch + item.head * aux.params.dv.head
            + (OWN_START + n) * aux.params.dv.seq;
        for (var c = 0u; c < VALUE_CHUNKS; c++) {
            var x = values_0;
            //$ for c in 1..VALUE_CHUNKS
            x = select(x, values_$c, c == $cu);
            //$ end
            store_dv(dv_row, c, x);
        }
        //$ end
        //$ if SLOPES
        var slope = slope_0;
        //$ for r in 1..ROWS
        slope = select(slope, slope_$r, r == $ru);
        //$ end
        rows[record_at(s, item.head, n)].z = slope;
        //$ end
    }
}
