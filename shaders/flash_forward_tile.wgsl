// Softmax attention forward (FlashAttention, arXiv 2307.08691) for GPUs.
//
//   out_i = sum_j exp(s_ij - LSE_i) v_j,  LSE_i = log sum_j exp(s_ij)
//
// A workgroup of TX x TY invocations owns a tile of TY * ROWS queries and walks the keys TX * KEYS at a time.
// Invocation (tx, ty) holds in registers: the scores of rows ty * ROWS .. + ROWS against keys tx, tx + TX, ..; and of the same
// rows the output's vec4 columns tx, tx + TX, ..  Keys and values come through `k_at` and `v_at` (staged in workgroup memory, or
// direct); weights pass from the first layout to the second through sh_weights. The head dim is a loop, so it may be any.

const TILE_Q: u32 = TY * ROWS;
const TILE_K: u32 = TX * KEYS;
const WEIGHT_STRIDE: u32 = TILE_Q / 4u + 1u;   // one more than needed: neighbours tx fall into different banks

var<workgroup> sh_weights: array<vec4<f32>, TILE_K * WEIGHT_STRIDE>;   // [key, query / 4], four queries a vec4

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
    let column = item.split * VALUE_CHUNKS;   // of the value dim, in vec4

    // Padding rows repeat the last query; they are never stored.
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    //$ for r in 0..ROWS
    let i_$r = min(first + ty * ROWS + $ru, last);
    let lo_$r = first_key(s, i_$r);
    let hi_$r = end_key(s, i_$r);
    let q_row_$r = q_base + (s.q_start + i_$r) * aux.params.q.seq;
    //$ for p in 0..PIECES
    //$ for u in 0..PIECE_COLUMNS
    var o_$r_$p_$u = vec4<f32>();
    //$ end
    //$ end
    var m_$r = lowest();
    var l_$r = 0.0;   // of this invocation's keys alone, until the end
    //$ end

    // All rows of the tile see all keys of [inner_start, inner_end); some row sees each key of [start, end).
    let start = first_key(s, first);
    let end = end_key(s, last);
    let inner_start = first_key(s, last);
    let inner_end = end_key(s, first);
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
            for (var c = 0u; c < chunks; c++) {
                //$ for r in 0..ROWS
                let q_$r = load_q(q_row_$r, c0 + c);
                //$ end
                //$ for k in 0..KEYS
                {
                    let k = k_at(tx + $ku * TX, c);
                    //$ for r in 0..ROWS
                    s_$r_$k += dot(q_$r, k);
                    //$ end
                }
                //$ end
            }
        }

        let interior = !MASKS_ELEMENTS && j0 >= inner_start && j0 + TILE_K <= inner_end;
        //$ for r in 0..ROWS
        var top_$r = m_$r;
        //$ end
        //$ for k in 0..KEYS
        var seen_$k = 0u;   // bit r: row r sees this key
        {
            let j = j0 + tx + $ku * TX;
            if (interior) {
                //$ for r in 0..ROWS
                s_$r_$k = score(s_$r_$k * aux.params.score_scale, i_$r, j, true).value;
                top_$r = max(top_$r, s_$r_$k);
                //$ end
            } else {
                //$ for r in 0..ROWS
                let t_$r = score(s_$r_$k * aux.params.score_scale, i_$r, j, j >= lo_$r && j < hi_$r);
                s_$r_$k = t_$r.value;
                top_$r = select(top_$r, max(top_$r, t_$r.value), t_$r.visible);
                seen_$k |= select(0u, 1u << $ru, t_$r.visible);
                //$ end
                mark_seen(tx + $ku * TX, seen_$k != 0u);
            }
        }
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
            //$ for p in 0..PIECES
            //$ for u in 0..PIECE_COLUMNS
            o_$r_$p_$u *= old;
            //$ end
            //$ end
        }
        //$ end
        //$ for k in 0..KEYS
        if (interior) {
            //$ for r in 0..ROWS
            s_$r_$k = weight(s_$r_$k, top_$r);
            l_$r += s_$r_$k;
            //$ end
        } else {
            //$ for r in 0..ROWS
            s_$r_$k = select(0.0, weight(s_$r_$k, top_$r), (seen_$k & (1u << $ru)) != 0u);
            l_$r += s_$r_$k;
            //$ end
        }
        //$ for r in 0..ROWS step 4
        sh_weights[(tx + $ku * TX) * WEIGHT_STRIDE + ty * (ROWS / 4u) + $ru / 4u] =
            vec4<f32>(s_$r_$k, s_${r+1}_$k, s_${r+2}_$k, s_${r+3}_$k);
        //$ end
        //$ end

        let keys = min(TILE_K, end - j0);
        //$ for p in 0..PIECES
        stage_v(thread, j0, column + $pu * PIECE_COLUMNS * TX);
        for (var n = 0u; n < keys; n++) {
            //$ for u in 0..PIECE_COLUMNS
            let v_$u = v_at(j0, n, $uu * TX + tx, column + ($pu * PIECE_COLUMNS + $uu) * TX + tx);
            //$ end
            //$ for r in 0..ROWS step 4
            {
                let w = sh_weights[n * WEIGHT_STRIDE + ty * (ROWS / 4u) + $ru / 4u];
                //$ for u in 0..PIECE_COLUMNS
                o_$r_$p_$u += w.x * v_$u;
                o_${r+1}_$p_$u += w.y * v_$u;
                o_${r+2}_$p_$u += w.z * v_$u;
                o_${r+3}_$p_$u += w.w * v_$u;
                //$ end
            }
            //$ end
        }
        //$ end
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
        //$ for p in 0..PIECES
        //$ for u in 0..PIECE_COLUMNS
        if (($pu * PIECE_COLUMNS + $uu) * TX + tx < VALUE_CHUNKS) {
            store_out(out_row, column + ($pu * PIECE_COLUMNS + $uu) * TX + tx, o_$r_$p_$u * f.scale);
        }
        //$ end
        //$ end
        if (tx == 0u && item.split == 0u) {
            store_lse(s, head, i_$r, f);
        }
    }
    //$ end
}
