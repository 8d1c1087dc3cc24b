// The linear attention of BASED (arXiv 2402.18668), token by token, for drivers that run on a CPU.
//
//   out_t = sum_s w_ts v_s / (sum_s w_ts + eps),  w = 1 + x + x^2 / 2,  x = scale q_t . k_s
//
// The gradient of v is the same sum from the last token to the first, keys in the role of queries and queries in that of keys.
//
// A subgroup owns LANES vec4 columns of the value dim and walks a segment's tokens with the state's columns in registers: state_I_J is
// the sum of u_I u_J v over the keys so far, u = [1, k], and weight_I_J that of u_I u_J, the same in all lanes. A token is added, then
// read. Lane n loads eight numbers of its rows of q and k, which all lanes then have.

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
                let share = select(1.0, SQUARE, (i == j) & (i > 0u));
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

    for (var t = 0u; t < s.tokens; t++) {
        let token = token_at(s, t);
        //$ if KEYS
        // What is no key may hold anything: it becomes zero, with a value and a weight of zero.
        let is_key = t < added_tokens(s);
        let k_own = load_pair_k(k_base + token * aux.params.k.seq, 2u * min(lane, FEATURES / 8u - 1u));
        //$ for d in 0..FEATURES step 8
        let k_a_$d = select(vec4<f32>(), within_head($du / 4u, subgroupBroadcast(k_own.a, $du / 8u)), is_key) * aux.params.write_scale;
        let k_b_$d = select(vec4<f32>(), within_head($du / 4u + 1u, subgroupBroadcast(k_own.b, $du / 8u)), is_key) * aux.params.write_scale;
        let k_${d+1} = k_a_$d.x;
        let k_${d+2} = k_a_$d.y;
        let k_${d+3} = k_a_$d.z;
        let k_${d+4} = k_a_$d.w;
        let k_${d+5} = k_b_$d.x;
        let k_${d+6} = k_b_$d.y;
        let k_${d+7} = k_b_$d.z;
        let k_${d+8} = k_b_$d.w;
        //$ end
        let k_0 = 1.0;
        let v = select(vec4<f32>(), load_v(v_base + token * aux.params.v.seq, column) * value_scale(s, head, token), is_key);
        //$ if WEIGHTS
        let w = select(0.0, value_weight(s, head, token), is_key);
        //$ end
        //$ end
        //$ if OUT
        let q_own = load_pair_q(q_base + token * aux.params.q.seq, 2u * min(lane, FEATURES / 8u - 1u));
        //$ for d in 0..FEATURES step 8
        let q_a_$d = within_head($du / 4u, subgroupBroadcast(q_own.a, $du / 8u)) * aux.params.read_scale;
        let q_b_$d = within_head($du / 4u + 1u, subgroupBroadcast(q_own.b, $du / 8u)) * aux.params.read_scale;
        let q_${d+1} = q_a_$d.x;
        let q_${d+2} = q_a_$d.y;
        let q_${d+3} = q_a_$d.z;
        let q_${d+4} = q_a_$d.w;
        let q_${d+5} = q_b_$d.x;
        let q_${d+6} = q_b_$d.y;
        let q_${d+7} = q_b_$d.z;
        let q_${d+8} = q_b_$d.w;
        //$ end
        let q_0 = 1.0;
        // The square of each counts half, but for that of 1.
        let half_0 = 1.0;
        //$ for i in 1..UNITS
        let half_$i = 0.5 * q_$i;
        //$ end
        var o = vec4<f32>();
        var total = 0.0;
        //$ end

        //$ for i in 0..UNITS
        {
            //$ if KEYS
            let kv = k_$i * v;
            //$ if WEIGHTS
            let kw = k_$i * w;
            //$ end
            //$ end
            //$ for j in i..UNITS
            //$ if KEYS
            state_$i_$j += k_$j * kv;
            //$ if WEIGHTS
            weight_$i_$j += k_$j * kw;
            //$ end
            //$ end
            //$ end
            //$ if OUT
            var p = half_$i * state_$i_$i;
            //$ for j in i+1..UNITS
            p += q_$j * state_$i_$j;
            //$ end
            o += q_$i * p;
            //$ if WEIGHTS
            var r = half_$i * weight_$i_$i;
            //$ for j in i+1..UNITS
            r += q_$j * weight_$i_$j;
            //$ end
            total += q_$i * r;
            //$ end
            //$ end
        }
        //$ end
        //$ if OUT
        store_out(out_base + token * aux.params.out.seq, column, select(vec4<f32>(), o * finish(total), is_row(s, t)));
        //$ end
    }

    //$ if STATE
    if (s.state == NONE) {
        return;
    }
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
            let share = select(1.0, SQUARE, (i == j) & (i > 0u));
            store_state(s, head, row, column, x * share);
            if ((item.split == 0u) & (lane == 0u)) {
                store_weight(s, head, row, w * share);
            }
        }
    }
    //$ end
}
