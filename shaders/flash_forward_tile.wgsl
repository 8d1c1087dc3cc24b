// Softmax attention forward (FlashAttention, arXiv 2307.08691) for GPUs.
//
//   out_i = sum_j exp(s_ij - LSE_i) v_j,  LSE_i = log sum_j exp(s_ij)
//
// A workgroup of TX x TY invocations owns a tile of TY * ROWS queries and walks the keys TX * KEYS at a time.
// Invocation (tx, ty) holds in registers: the scores of rows ty * ROWS .. + ROWS against keys tx, tx + TX, ..; and of the same
// rows COLUMNS vec4 of the output, from column tx * COLUMNS on. Keys, then values, pass through a slab of workgroup memory; weights
// pass from the first layout to the second through sh_weights. The head dim is a loop, so it may be any.
// The body is one straight line: drivers that predicate pay for each variable that a branch writes. What is cheap to derive (a row's
// key range, its place in q) is derived where it is used: registers, not instructions, are what a tile of this size lacks.

const TILE_Q: u32 = TY * ROWS;
const TILE_K: u32 = TX * KEYS;
const WEIGHT_STRIDE: u32 = TILE_Q / 4u + 1u;   // one more than needed: neighbours tx fall into different banks

var<workgroup> sh_weights: array<array<array<vec4<f32>, WEIGHT_STRIDE>, KEY_STEP>, TILE_K / KEY_STEP>;   // [key, query / 4], four queries a vec4

// Keys [key / TX, chunk, key % TX], then values [key / BLOCK_KEYS, key % BLOCK_KEYS, column]. Both arrays are nested so that one checked
// index serves all that a turn of an inner loop reads: what is added to it is constant, or known not to leave its row.
var<workgroup> sh_slab: array<array<vec4<f32>, K_CHUNKS * K_STRIDE>, KEYS>;
const K_STRIDE: u32 = TX + 1u;   // one more than needed, as above
const V_STRIDE: u32 = TX * COLUMNS;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    INVOCATION_BUILTINS
) {
    let invocation = INVOCATION;
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

    //$ for r in 0..ROWS
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
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head + s.q_start * aux.params.q.seq;
    let k_first = k_base(s, kv_head);
    let v_first = v_base(s, kv_head);
    let row = first + ty * ROWS;   // padding rows repeat the last query; they are never stored

    for (var j0 = start; j0 < end; j0 += TILE_K) {
        //$ for r in 0..ROWS
        //$ for k in 0..KEYS
        var s_$r_$k = 0.0;
        //$ end
        //$ end
        clear_seen(thread);
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += K_CHUNKS) {
            let chunks = min(K_CHUNKS, aux.params.head_chunks - c0);
            workgroupBarrier();   // the slab's previous use, and the previous tile's weights, have been read
            //$ for n in 0..K_LOADS
            {
                // What lies past the last key or the head dim is never looked at.
                let key = (thread + $nu * THREADS) / K_CHUNKS;
                let chunk = thread % K_CHUNKS;
                sh_slab[key / TX][chunk * K_STRIDE + key % TX] = load_k(k_row(k_first, s, j0 + key), c0 + chunk);
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var c = 0u; c < chunks; c++) {
                //$ for r in 0..ROWS
                let q_$r = load_q(q_base + min(row + $ru, last) * aux.params.q.seq, c0 + c);
                //$ end
                //$ for k in 0..KEYS
                {
                    let k = sh_slab[$k][c * K_STRIDE + tx];
                    //$ for r in 0..ROWS
                    s_$r_$k += dot(q_$r, k);
                    //$ end
                }
                //$ end
            }
        }

        var visible = 0u;   // bit r * KEYS + k: row r sees key k; one register, where flags would take one each
        //$ for r in 0..ROWS
        var top_$r = m_$r;
        {
            let i = min(row + $ru, last);
            let lo = first_key(s, i);
            let seen_keys = max(end_key(s, i), lo) - lo;
            let at = j0 + tx - lo;   // wraps before the range, so that one comparison tells both ends
            //$ for k in 0..KEYS
            let t_$k = score(s_$r_$k * aux.params.score_scale, i, j0 + tx + $ku * TX, at + $ku * TX < seen_keys);
            s_$r_$k = t_$k.value;
            top_$r = select(top_$r, max(top_$r, t_$k.value), t_$k.visible);
            visible |= select(0u, 1u << ($ru * KEYS + $ku), t_$k.visible);
            //$ end
        }
        //$ end
        var seen = 0u;   // bit k: some row of this invocation sees key k
        //$ for r in 0..ROWS
        seen |= visible >> ($ru * KEYS);
        //$ end
        //$ for k in 0..KEYS
        mark_seen(tx + $ku * TX, ((seen >> $ku) & 1u) == 1u);
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
        s_$r_$k = select(0.0, weight(s_$r_$k, top_$r), ((visible >> ($ru * KEYS + $ku)) & 1u) == 1u);
        l_$r += s_$r_$k;
        //$ end
        //$ for r in 0..ROWS step 4
        sh_weights[(tx + $ku * TX) / KEY_STEP][tx % KEY_STEP][ty * (ROWS / 4u) + $ru / 4u] =
            vec4<f32>(s_$r_$k, s_${r+1}_$k, s_${r+2}_$k, s_${r+3}_$k);
        //$ end
        //$ end

        // Weights past the last key are zero, so that keys may be walked KEY_STEP at a time.
        let keys = min(TILE_K, end - j0);
        for (var g = 0u; g < keys; g += V_KEYS) {
            workgroupBarrier();   // the slab's previous use has been read, all weights have been written
            //$ for n in 0..V_LOADS
            {
                let place = (thread + $nu * THREADS) / V_STRIDE;
                let column = thread % V_STRIDE;
                let v = load_v(v_row(v_first, s, min(j0 + g + place, end - 1u)), item.split * VALUE_CHUNKS + column);
                sh_slab[place / BLOCK_KEYS][place % BLOCK_KEYS * V_STRIDE + column] = kept(v, key_seen(g + place));
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var n0 = 0u; n0 < min(V_KEYS, keys - g); n0 += KEY_STEP) {
                //$ for n in 0..KEY_STEP
                {
                    //$ for r in 0..ROWS step 4
                    let w_$r = sh_weights[(g + n0) / KEY_STEP][$n][ty * (ROWS / 4u) + $ru / 4u];
                    //$ end
                    //$ for u in 0..COLUMNS
                    {
                        let v = sh_slab[n0 / BLOCK_KEYS + $nu / BLOCK_KEYS][$nu % BLOCK_KEYS * V_STRIDE + tx * COLUMNS + $uu];
                        //$ for r in 0..ROWS step 4
                        o_$r_$u += w_$r.x * v;
                        o_${r+1}_$u += w_$r.y * v;
                        o_${r+2}_$u += w_$r.z * v;
                        o_${r+3}_$u += w_$r.w * v;
                        //$ end
                    }
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
    let column = item.split * VALUE_CHUNKS + tx * COLUMNS;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ for r in 0..ROWS
    if (row + $ru <= last) {
        let f = finish(m_$r, l_$r, head);
        let i = row + $ru;
        let out_row = out_base + (s.q_start + i) * aux.params.out.seq;
        //$ for u in 0..COLUMNS
        if (tx * COLUMNS + $uu < VALUE_CHUNKS) {
            store_out(out_row, column + $uu, o_$r_$u * f.scale);
        }
        //$ end
        if ((tx == 0u) & (item.split == 0u)) {
            store_lse(s, head, i, f);
        }
    }
    //$ end
}
