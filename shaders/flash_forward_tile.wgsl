// Softmax attention forward (FlashAttention, arXiv 2307.08691) for GPUs.
//
//   out_i = sum_j exp(s_ij - LSE_i) v_j,  LSE_i = log sum_j exp(s_ij)
//
// A workgroup of TX x TY invocations owns a tile of TY * ROWS queries and walks the keys TX * KEYS at a time.
// Invocation (tx, ty) holds in registers: the scores of rows ty * ROWS .. + ROWS against keys tx, tx + TX, ..; and of the same
// rows COLUMNS vec4 of the output, from column tx * COLUMNS on. Keys and values come through `k_at` and `v_at` (staged in workgroup
// memory, or direct); weights pass from the first layout to the second through sh_weights. The head dim is a loop, so it may be any.
// The body is one straight line: drivers that predicate pay for each variable that a branch writes.

const TILE_Q: u32 = TY * ROWS;
const TILE_K: u32 = TX * KEYS;
const WEIGHT_STRIDE: u32 = TILE_Q / 4u + 1u;   // one more than needed: neighbours tx fall into different banks

var<workgroup> sh_weights: array<vec4<f32>, TILE_K * WEIGHT_STRIDE>;   // [key, query / 4], four queries a vec4

// Where keys and values lie, for `k_at` and `v_at`.
var<private> k_base: u32;   // of the sequence's first key
var<private> v_base: u32;
var<private> key_end: u32;

fn begin_keys(s: Sequence, kv_head: u32, end: u32) {
    k_base = aux.params.k.offset + s.batch * aux.params.k.batch + kv_head * aux.params.k.head + s.k_start * aux.params.k.seq;
    v_base = aux.params.v.offset + s.batch * aux.params.v.batch + kv_head * aux.params.v.head + s.k_start * aux.params.v.seq;
    key_end = end;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    invocation: Invocation,
) {
    let thread = thread_index(invocation);
    let item = item_at(workgroup, grid);
    if (!item.live) {
        return;
    }
    let tx = thread % TX;
    let ty = thread / TX;
    let s = sequence_at(item.record);
    let head = item.head;
    begin_scores(s, head);
    let first = item.tile * TILE_Q;
    let last = min(first + TILE_Q, s.queries) - 1u;
    let column = item.split * VALUE_CHUNKS + tx * COLUMNS;   // this invocation's first, of the value dim in vec4

    // Padding rows repeat the last query; they are never stored.
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    //$ for r in 0..ROWS
    let i_$r = min(first + ty * ROWS + $ru, last);
    let lo_$r = first_key(s, i_$r);
    let seen_keys_$r = max(end_key(s, i_$r), lo_$r) - lo_$r;
    let q_row_$r = q_base + (s.q_start + i_$r) * aux.params.q.seq;
    //$ for u in 0..COLUMNS
    var o_$r_$u = vec4<f32>();
    //$ end
    var m_$r = lowest();
    var l_$r = 0.0;   // of this invocation's keys alone, until the end
    //$ end

    // Some row of the tile sees each key of [start, end).
    let start = first_key(s, first);
    let end = end_key(s, last);
    let kv_head = head / aux.params.group;
    begin_keys(s, kv_head, end);

    for (var j0 = start; j0 < end; j0 += TILE_K) {
        //$ for r in 0..ROWS
        //$ for k in 0..KEYS
        var s_$r_$k = 0.0;
        //$ end
        //$ end
        clear_seen(thread);
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += STAGE_CHUNKS) {
            let chunks = min(STAGE_CHUNKS, aux.params.head_chunks - c0);
            stage_k(thread, j0, c0);
            for (var c = 0u; c < chunks; c += 2u) {
                //$ for r in 0..ROWS
                let q_$r = load_pair_q(q_row_$r, c0 + c);
                let q_b_$r = within_head(c0 + c + 1u, q_$r.b);
                //$ end
                //$ for k in 0..KEYS
                {
                    let k = k_at(tx + $ku * TX, c);
                    //$ for r in 0..ROWS
                    s_$r_$k += dot(q_$r.a, k.a) + dot(q_b_$r, k.b);
                    //$ end
                }
                //$ end
            }
        }

        //$ for r in 0..ROWS
        let at_$r = j0 + tx - lo_$r;   // wraps before the range, so that one comparison tells both ends
        var top_$r = m_$r;
        //$ end
        //$ for k in 0..KEYS
        var seen_$k = false;
        //$ for r in 0..ROWS
        let t_$r_$k = score(s_$r_$k * aux.params.score_scale, i_$r, j0 + tx + $ku * TX, at_$r + $ku * TX < seen_keys_$r);
        top_$r = select(top_$r, max(top_$r, t_$r_$k.value), t_$r_$k.visible);
        seen_$k = seen_$k || t_$r_$k.visible;
        //$ end
        mark_seen(tx + $ku * TX, seen_$k);
        //$ end

        // A row's maximum is shared by its TX invocations; from here on the old output and sum are in the new unit.
        //$ for r in 0..ROWS step 4
        let tops_$r = row_max(thread, vec4<f32>(top_$r, top_${r+1}, top_${r+2}, top_${r+3}));
        top_$r = tops_$r.x;
        top_${r+1} = tops_$r.y;
        top_${r+2} = tops_$r.z;
        top_${r+3} = tops_$r.w;
        //$ end
        //$ for r in 0..ROWS
        {
            let old = weight(m_$r, top_$r);
            m_$r = top_$r;
            l_$r *= old;
            //$ for u in 0..COLUMNS
            o_$r_$u *= old;
            //$ end
        }
        //$ end
        //$ for k in 0..KEYS
        //$ for r in 0..ROWS
        s_$r_$k = select(0.0, weight(t_$r_$k.value, top_$r), t_$r_$k.visible);
        l_$r += s_$r_$k;
        //$ end
        //$ for r in 0..ROWS step 4
        sh_weights[(tx + $ku * TX) * WEIGHT_STRIDE + ty * (ROWS / 4u) + $ru / 4u] =
            vec4<f32>(s_$r_$k, s_${r+1}_$k, s_${r+2}_$k, s_${r+3}_$k);
        //$ end
        //$ end

        // Weights past the last key are zero, so that keys may be walked four at a time.
        let keys = min(TILE_K, end - j0);
        for (var g = 0u; g < keys; g += V_KEYS) {
            stage_v(thread, j0 + g, g, item.split * VALUE_CHUNKS);
            for (var n0 = 0u; n0 < min(V_KEYS, keys - g); n0 += 4u) {
                //$ for n in 0..4
                //$ for r in 0..ROWS step 4
                let w_$r_$n = sh_weights[(g + n0 + $nu) * WEIGHT_STRIDE + ty * (ROWS / 4u) + $ru / 4u];
                //$ end
                //$ end
                //$ for u in 0..COLUMNS step 2
                {
                    //$ for n in 0..4
                    let v_$n = v_at(j0 + g, g, n0 + $nu, tx * COLUMNS + $uu, column + $uu);
                    //$ end
                    //$ for r in 0..ROWS step 4
                    o_$r_$u += w_$r_0.x * v_0.a + w_$r_1.x * v_1.a + w_$r_2.x * v_2.a + w_$r_3.x * v_3.a;
                    o_$r_${u+1} += w_$r_0.x * v_0.b + w_$r_1.x * v_1.b + w_$r_2.x * v_2.b + w_$r_3.x * v_3.b;
                    o_${r+1}_$u += w_$r_0.y * v_0.a + w_$r_1.y * v_1.a + w_$r_2.y * v_2.a + w_$r_3.y * v_3.a;
                    o_${r+1}_${u+1} += w_$r_0.y * v_0.b + w_$r_1.y * v_1.b + w_$r_2.y * v_2.b + w_$r_3.y * v_3.b;
                    o_${r+2}_$u += w_$r_0.z * v_0.a + w_$r_1.z * v_1.a + w_$r_2.z * v_2.a + w_$r_3.z * v_3.a;
                    o_${r+2}_${u+1} += w_$r_0.z * v_0.b + w_$r_1.z * v_1.b + w_$r_2.z * v_2.b + w_$r_3.z * v_3.b;
                    o_${r+3}_$u += w_$r_0.w * v_0.a + w_$r_1.w * v_1.a + w_$r_2.w * v_2.a + w_$r_3.w * v_3.a;
                    o_${r+3}_${u+1} += w_$r_0.w * v_0.b + w_$r_1.w * v_1.b + w_$r_2.w * v_2.b + w_$r_3.w * v_3.b;
                    //$ end
                }
                //$ end
            }
        }
    }

    //$ for r in 0..ROWS step 4
    let sums_$r = row_sum(thread, vec4<f32>(l_$r, l_${r+1}, l_${r+2}, l_${r+3}));
    l_$r = sums_$r.x;
    l_${r+1} = sums_$r.y;
    l_${r+2} = sums_$r.z;
    l_${r+3} = sums_$r.w;
    //$ end
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ for r in 0..ROWS
    if (first + ty * ROWS + $ru <= last) {
        let f = finish(m_$r, l_$r, head);
        let out_row = out_base + (s.q_start + i_$r) * aux.params.out.seq;
        //$ for u in 0..COLUMNS
        if (tx * COLUMNS + $uu < VALUE_CHUNKS) {
            store_out(out_row, column + $uu, o_$r_$u * f.scale);
        }
        //$ end
        if (tx == 0u && item.split == 0u) {
            store_lse(s, head, i_$r, f);
        }
    }
    //$ end
}
