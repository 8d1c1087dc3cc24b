// The gradients of q and k of BASED's linear attention, token by token.
//
//   dq_t = scale sum_s g_ts (1 + x_ts) k_s,  dk_s = scale sum_t g_ts (1 + x_ts) q_t,  g_ts = dout_t . v_s / n_t + dn_t
//
// with n the denominators and dn their gradients. In terms of moments M_ij = sum u_i u_j v and m_ij = sum u_i u_j, u = [1, k], over the
// keys that a query sees: dq_i = scale sum_j u_j (dout . M_ij / n + dn m_ij), u = [1, scale q]. So is dk with the moments of q and
// dout / n, dn, over the queries that see a key. Here `q` are the rows that gradients come out for, `g` what meets the values.
//
// A workgroup walks a segment with VALUES vec4 columns of the value dim, from aux.params.block on: further ones are further passes,
// whose sums lie in the records. An invocation owns ROWS rows (i, j) of the state in registers; a token is added, then read, into
// sh_y. After CHUNK tokens invocations (token, i) sum over j. No sum crosses invocations but through workgroup memory. On CPU drivers,
// lanes of a subgroup share the loads of values: BLOCK columns, each in BLOCKS registers.

var<workgroup> sh_q: array<f32, CHUNK * UNITS>;            // [token, unit]
var<workgroup> sh_g: array<vec4<f32>, CHUNK * VALUES>;     // [token, column]
var<workgroup> sh_y: array<f32, CHUNK * FEATURE_ROWS>;     // [token, row of the state]: g . M_ij
var<workgroup> sh_p: array<f32, CHUNK * UNITS>;            // [token, unit]: sum_j u_j sh_y_ij
//$ if KEYS
var<workgroup> sh_k: array<f32, CHUNK * UNITS>;            // [token, unit]
var<workgroup> sh_v: array<vec4<f32>, CHUNK * VALUES>;     // [token, column]
var<workgroup> sh_weight: array<f32, CHUNK>;               // what a token weighs
//$ end
//$ if WEIGHTS
var<workgroup> sh_m: array<f32, CHUNK * FEATURE_ROWS>;     // [token, row of the state]: m_ij
var<workgroup> sh_z: array<f32, CHUNK * UNITS>;            // [token, unit]: sum_j u_j sh_m_ij
//$ end

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    //$ if LANES
    @builtin(subgroup_invocation_id) lane: u32,
    //$ end
) {
    let item = item_at(workgroup, grid);
    if (!item.live) {
        return;
    }
    let s = segment_at(item.segment);
    let head = item.head;

    //$ for r in 0..ROWS
    let row_$r = thread + $ru * THREADS;
    let pair_$r = pair_of(row_$r);
    let share_$r = select(1.0, SQUARE, (pair_$r.i == pair_$r.j) & (pair_$r.i > 0u));
    var weight_$r = 0.0;
    //$ for b in 0..BLOCKS
    //$ for n in 0..BLOCK
    var m_$r_$b_$n = vec4<f32>();
    //$ end
    //$ end
    //$ end
    if (s.state0 != NONE) {
        // Registers have no index: they are loaded by selection, since drivers compile one load fast and many slowly.
        for (var c = 0u; c < VALUES; c++) {
            //$ for r in 0..ROWS
            {
                let x = load_state(s, head, row_$r, aux.params.block + c) / share_$r;
                //$ for b in 0..BLOCKS
                //$ for n in 0..BLOCK
                m_$r_$b_$n = select(m_$r_$b_$n, x, c == $bu * BLOCK + $nu);
                //$ end
                //$ end
            }
            //$ end
        }
        //$ for r in 0..ROWS
        if (row_$r < aux.params.state_rows) {
            weight_$r = load_weight(s, head, row_$r) / share_$r;
        }
        //$ end
    }
    if (thread < CHUNK) {
        sh_q[thread * UNITS] = 1.0;
        //$ if KEYS
        sh_k[thread * UNITS] = 1.0;
        //$ end
    }

    for (var t0 = 0u; t0 < s.tokens; t0 += CHUNK) {
        let live = min(CHUNK, s.tokens - t0);   // tokens of this chunk; what lies past them repeats the last one
        //$ if KEYS
        let keys = min(live, added_tokens(s) - min(t0, added_tokens(s)));   // those that are keys; what is none may hold anything
        //$ end
        let block = aux.params.block;
        let last = block + VALUES >= aux.params.value_chunks;   // pass
        //$ if WEIGHTS
        workgroupBarrier();   // the queries of the chunk before have been read once more, with its sums
        //$ end
        for (var e = thread; e < CHUNK * FOURS; e += THREADS) {
            let t = e / FOURS;
            let c = e % FOURS;
            let token = token_at(s, t0 + min(t, live - 1u));
            let at = t * UNITS + 4u * c + 1u;
            let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
            let q = load_q(q_base + token * aux.params.q.seq, c) * aux.params.read_scale;
            //$ for d in 0..4
            sh_q[at + $du] = q[$d];
            //$ end
            //$ if KEYS
            let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
            let k = select(vec4<f32>(), load_k(k_base + token * aux.params.k.seq, c) * aux.params.write_scale, t < keys);
            //$ for d in 0..4
            sh_k[at + $du] = k[$d];
            //$ end
            //$ end
        }
        for (var e = thread; e < CHUNK * VALUES; e += THREADS) {
            let t = e / VALUES;
            let c = block + e % VALUES;
            let token = token_at(s, t0 + min(t, live - 1u));
            let inside = c < aux.params.value_chunks;
            let g_base = aux.params.g.offset + s.batch * aux.params.g.batch + head * aux.params.g.head;
            sh_g[e] = select(vec4<f32>(), load_g(g_base + token * aux.params.g.seq, c), inside);
            //$ if KEYS
            let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
            let v = load_v(v_base + token * aux.params.v.seq, c) * value_scale(s, head, token);
            sh_v[e] = select(vec4<f32>(), v, inside & (t < keys));
            //$ end
        }
        //$ if KEYS
        if (thread < CHUNK) {
            sh_weight[thread] = select(0.0, value_weight(s, head, token_at(s, t0 + min(thread, live - 1u))), thread < keys);
        }
        //$ end
        workgroupBarrier();   // the chunk is there

        for (var t = 0u; t < live; t++) {
            //$ for r in 0..ROWS
            //$ if KEYS
            let kk_$r = sh_k[t * UNITS + pair_$r.i] * sh_k[t * UNITS + pair_$r.j];
            weight_$r += kk_$r * sh_weight[t];
            //$ end
            var y_$r = vec4<f32>();
            //$ end
            //$ for b in 0..BLOCKS
            {
                //$ if LANES
                // A load for each column in another lane, since CPU drivers load for each lane by itself.
                let at = t * VALUES + $bu * BLOCK + lane % BLOCK;
                let g_block = sh_g[at];
                //$ if KEYS
                let v_block = sh_v[at];
                //$ end
                //$ end
                //$ for n in 0..BLOCK
                {
                    //$ if LANES
                    let g = subgroupBroadcast(g_block, $nu);
                    //$ if KEYS
                    let v = subgroupBroadcast(v_block, $nu);
                    //$ end
                    //$ end
                    //$ if ALONE
                    let g = sh_g[t * VALUES + $bu];
                    //$ if KEYS
                    let v = sh_v[t * VALUES + $bu];
                    //$ end
                    //$ end
                    //$ for r in 0..ROWS
                    //$ if KEYS
                    m_$r_$b_$n += kk_$r * v;
                    //$ end
                    y_$r += m_$r_$b_$n * g;
                    //$ end
                }
                //$ end
            }
            //$ end
            //$ for r in 0..ROWS
            if (row_$r < aux.params.state_rows) {
                // Values weigh 1 where rows are keys; what weighs where they are queries is not known before their sums are.
                let weighed = select(0.0, weight_$r, (REVERSED == 1u) & last);
                sh_y[t * FEATURE_ROWS + row_$r] = (y_$r.x + y_$r.y) + (y_$r.z + y_$r.w) + weighed;
                //$ if WEIGHTS
                sh_m[t * FEATURE_ROWS + row_$r] = weight_$r;
                //$ end
            }
            //$ end
        }
        workgroupBarrier();   // all rows of the chunk's tokens are there

        let units = aux.params.head_dim + 1u;
        for (var e = thread; e < live * units; e += THREADS) {
            let t = e / units;
            let i = e % units;
            var p = 0.0;
            //$ if WEIGHTS
            var z = 0.0;
            //$ end
            for (var j = 0u; j < units; j++) {
                let at = t * FEATURE_ROWS + feature_row(min(i, j), max(i, j));
                p += sh_q[t * UNITS + j] * sh_y[at];
                //$ if WEIGHTS
                z += sh_q[t * UNITS + j] * sh_m[at];
                //$ end
            }
            //$ if PASSES
            let record = record_at(s, head, token_at(s, t0 + t)) + 3u;
            if (block > 0u) {
                p += records[record + i];
            }
            if (!last) {
                records[record + i] = p;
            }
            // The sum of the first row alone is needed too; only this invocation reads that row.
            if (i == 0u) {
                if (block > 0u) {
                    sh_y[t * FEATURE_ROWS] += records[record - 1u];
                }
                if (!last) {
                    records[record - 1u] = sh_y[t * FEATURE_ROWS];
                }
            }
            //$ end
            sh_p[t * UNITS + i] = p;
            //$ if WEIGHTS
            sh_z[t * UNITS + i] = z;
            //$ end
        }
        workgroupBarrier();   // the sums are there
        if (last) {
            for (var e = thread; e < live * aux.params.head_chunks; e += THREADS) {
                let t = e / aux.params.head_chunks;
                let c = e % aux.params.head_chunks;
                let token = token_at(s, t0 + t);
                let at = t * UNITS + 4u * c + 1u;
                var x = vec4<f32>(sh_p[at], sh_p[at + 1u], sh_p[at + 2u], sh_p[at + 3u]);
                //$ if RECORDS
                var inverse = 1.0;
                var dn = 0.0;
                //$ if WEIGHTS
                // sum c_ij u_i u_j y_ij is half of y_00 and all p, each second-order term being in two of them.
                var d = sh_y[t * FEATURE_ROWS];
                var n = sh_m[t * FEATURE_ROWS];
                for (var i = 0u; i < units; i++) {
                    d += sh_q[t * UNITS + i] * sh_p[t * UNITS + i];
                    n += sh_q[t * UNITS + i] * sh_z[t * UNITS + i];
                }
                // The output of a query that sees no key is 0 whatever it is.
                inverse = select(0.0, finish(0.5 * n), n > 0.0);
                dn = -0.5 * d * inverse * inverse;
                x = inverse * x + dn * vec4<f32>(sh_z[at], sh_z[at + 1u], sh_z[at + 2u], sh_z[at + 3u]);
                //$ end
                if (c == 0u) {
                    let record = record_at(s, head, token);
                    records[record] = inverse;
                    records[record + 1u] = dn;
                }
                //$ end
                let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
                store_out(out_base + token * aux.params.out.seq, c, select(vec4<f32>(), x * aux.params.read_scale, is_row(s, t0 + t)));
            }
        }
    }
}
