// The linear attention of BASED (arXiv 2402.18668), chunk by chunk, for drivers that run on a CPU.
//
//   out_t = sum_s w_ts v_s / (sum_s w_ts + eps),  w = 1 + x + x^2 / 2,  x = scale q_t . k_s
//
// The gradient of v is the same sum from the last token to the first, keys in the role of queries and queries in that of keys.
//
// A subgroup owns LANES vec4 columns of the value dim and walks a segment's tokens LANES at a time, one a lane, with the state's
// columns in registers: state_I_J is the sum of u_I u_J v over the keys before the chunk, u = [1, k], and weight_I_J that of u_I u_J,
// the same in all lanes. Inside a chunk scores stand for the state; between chunks the state does.

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
    let column = item.split * LANES + lane;   // of the value dim in vec4
    //$ if KEYS
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ end
    //$ if OUT
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ end

    // Registers have no index: loops over them load and store by selection, since drivers compile one load fast and many slowly.
    //$ for i in 0..UNITS
    //$ for j in i..UNITS
    var state_$i_$j = vec4<f32>();
    //$ if WEIGHTS
    var weight_$i_$j = 0.0;
    //$ end
    //$ end
    //$ end
    if (s.state0 != NONE) {
        for (var i = 0u; i <= aux.params.head_dim; i++) {
            for (var j = i; j <= aux.params.head_dim; j++) {
                let row = feature_row(i, j);
                let share = select(1.0, SQUARE, i == j && i > 0u);
                let x = load_state(s, head, row, column) / share;
                //$ if WEIGHTS
                let w = load_weight(s, head, row) / share;
                //$ end
                let at = i * UNITS + j;
                //$ for i in 0..UNITS
                //$ for j in i..UNITS
                state_$i_$j = select(state_$i_$j, x, at == $iu * UNITS + $ju);
                //$ if WEIGHTS
                weight_$i_$j = select(weight_$i_$j, w, at == $iu * UNITS + $ju);
                //$ end
                //$ end
                //$ end
            }
        }
    }

    for (var t0 = 0u; t0 < s.tokens; t0 += LANES) {
        let live = min(LANES, s.tokens - t0);
        // Lanes past the last token repeat it; they write nothing.
        let token = token_at(s, t0 + min(lane, live - 1u));
        //$ if KEYS
        // What is no key may hold anything: it becomes zero, with a value of zero.
        let keys = min(live, added_tokens(s) - min(t0, added_tokens(s)));
        let k_row = k_base + token * aux.params.k.seq;
        let k_0 = 1.0;
        //$ for d in 0..FEATURES step 8
        let k_pair_$d = load_pair_k(k_row, $du / 4u);
        let k_a_$d = select(vec4<f32>(), within_head($du / 4u, k_pair_$d.a), lane < keys) * aux.params.write_scale;
        let k_b_$d = select(vec4<f32>(), within_head($du / 4u + 1u, k_pair_$d.b), lane < keys) * aux.params.write_scale;
        let k_${d+1} = k_a_$d.x;
        let k_${d+2} = k_a_$d.y;
        let k_${d+3} = k_a_$d.z;
        let k_${d+4} = k_a_$d.w;
        let k_${d+5} = k_b_$d.x;
        let k_${d+6} = k_b_$d.y;
        let k_${d+7} = k_b_$d.z;
        let k_${d+8} = k_b_$d.w;
        //$ end
        //$ for n in 0..LANES
        let token_$n = token_at(s, t0 + min($nu, live - 1u));
        let v_$n = select(vec4<f32>(), load_v(v_base + token_$n * aux.params.v.seq, column) * value_scale(s, head, token_$n), $nu < keys);
        //$ end
        //$ end

        //$ if OUT
        let q_row = q_base + token * aux.params.q.seq;
        let q_0 = 1.0;
        //$ for d in 0..FEATURES step 8
        let q_pair_$d = load_pair_q(q_row, $du / 4u);
        let q_a_$d = within_head($du / 4u, q_pair_$d.a) * aux.params.read_scale;
        let q_b_$d = within_head($du / 4u + 1u, q_pair_$d.b) * aux.params.read_scale;
        let q_${d+1} = q_a_$d.x;
        let q_${d+2} = q_a_$d.y;
        let q_${d+3} = q_a_$d.z;
        let q_${d+4} = q_a_$d.w;
        let q_${d+5} = q_b_$d.x;
        let q_${d+6} = q_b_$d.y;
        let q_${d+7} = q_b_$d.z;
        let q_${d+8} = q_b_$d.w;
        //$ end
        // The square of each counts half, but for that of 1.
        let half_0 = 1.0;
        //$ for i in 1..UNITS
        let half_$i = 0.5 * q_$i;
        //$ end
        var total = 0.0;
        //$ if WEIGHTS
        //$ for i in 0..UNITS
        total += half_$i * q_$i * weight_$i_$i;
        //$ for j in i+1..UNITS
        total += q_$i * q_$j * weight_$i_$j;
        //$ end
        //$ end
        //$ end
        //$ if KEYS
        // A lane's row sees the keys up to its own.
        //$ for n in 0..LANES
        var x_$n = 0.0;
        //$ end
        //$ for d in 0..FEATURES step 8
        //$ for n in 0..LANES
        x_$n += dot(q_a_$d, subgroupBroadcast(k_a_$d, $nu)) + dot(q_b_$d, subgroupBroadcast(k_b_$d, $nu));
        //$ end
        //$ end
        //$ for n in 0..LANES
        let w_$n = select(0.0, 1.0 + x_$n + 0.5 * x_$n * x_$n, $nu <= lane && $nu < keys);
        total += w_$n;
        //$ end
        //$ end
        let factor = finish(total);

        //$ for r in 0..LANES
        var row_$r = vec4<f32>();
        //$ end
        //$ for r in 0..LANES step 4
        {
            //$ for m in 0..4
            var o_$m = vec4<f32>();
            //$ end
            //$ for i in 0..UNITS
            //$ for m in 0..4
            o_$m += subgroupBroadcast(half_$i * q_$i, $ru + $mu) * state_$i_$i;
            //$ end
            //$ for j in i+1..UNITS
            //$ for m in 0..4
            o_$m += subgroupBroadcast(q_$i * q_$j, $ru + $mu) * state_$i_$j;
            //$ end
            //$ end
            //$ end
            //$ if KEYS
            //$ for n in 0..LANES
            //$ for m in 0..4
            o_$m += subgroupBroadcast(w_$n, $ru + $mu) * v_$n;
            //$ end
            //$ end
            //$ end
            row_$r = o_0 * subgroupBroadcast(factor, $ru);
            row_${r+1} = o_1 * subgroupBroadcast(factor, $ru + 1u);
            row_${r+2} = o_2 * subgroupBroadcast(factor, $ru + 2u);
            row_${r+3} = o_3 * subgroupBroadcast(factor, $ru + 3u);
        }
        //$ end
        for (var n = 0u; n < live; n++) {
            var row = row_0;
            //$ for r in 1..LANES
            row = select(row, row_$r, n == $ru);
            //$ end
            store_out(out_base + token_at(s, t0 + n) * aux.params.out.seq, column, select(vec4<f32>(), row, is_row(s, t0 + n)));
        }
        //$ end

        //$ if KEYS
        //$ if WEIGHED
        let weight = select(0.0, value_weight(s, head, token), lane < keys);
        //$ for n in 0..LANES
        let weight_of_$n = subgroupBroadcast(weight, $nu);
        //$ end
        //$ end
        //$ for i in 0..UNITS
        //$ for j in i..UNITS
        {
            let kk = k_$i * k_$j;
            //$ for n in 0..LANES
            let b_$n = subgroupBroadcast(kk, $nu);
            state_$i_$j += b_$n * v_$n;
            //$ end
            //$ if COUNTED
            //$ for n in 0..LANES
            weight_$i_$j += b_$n;
            //$ end
            //$ end
            //$ if WEIGHED
            //$ for n in 0..LANES
            weight_$i_$j += b_$n * weight_of_$n;
            //$ end
            //$ end
        }
        //$ end
        //$ end
        //$ if COUNTED
        weight_0_0 -= f32(LANES - keys);   // what is no key counted as 1
        //$ end
        //$ end
    }

    //$ if STATE
    for (var i = 0u; i <= aux.params.head_dim; i++) {
        for (var j = i; j <= aux.params.head_dim; j++) {
            let at = i * UNITS + j;
            var x = state_0_0;
            var w = weight_0_0;
            //$ for i in 0..UNITS
            //$ for j in i..UNITS
            x = select(x, state_$i_$j, at == $iu * UNITS + $ju);
            w = select(w, weight_$i_$j, at == $iu * UNITS + $ju);
            //$ end
            //$ end
            let row = feature_row(i, j);
            let share = select(1.0, SQUARE, i == j && i > 0u);
            store_state(s, head, row, column, x * share);
            if (item.split == 0u && lane == 0u) {
                store_weight(s, head, row, w * share);
            }
        }
    }
    //$ end
}
