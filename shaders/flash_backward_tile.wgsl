// The backward pass of softmax attention (FlashAttention-2, arXiv 2307.08691) for GPUs: one of its three gradients.
//
//   p_ij = exp(s_ij - LSE_i),  ds_ij = p_ij (dO_i . v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i,  dv_j = sum_i p_ij dO_i
//
// A workgroup of TX x TY invocations owns a tile of TY * ROWS queries, for dq, and walks the keys that they see TX * KEYS at a time; or
// it owns keys, for dk or dv, and walks the queries that see them, of all heads that share these keys. Invocation (tx, ty) holds in
// registers: products of its rows ty * ROWS .. + ROWS with rows tx, tx + TX, .. of what is walked, first dO . v, which wait in sh_weights,
// then scores; and of the same rows COLUMNS vec4 of the gradient, from column tx * COLUMNS on. What is walked passes through a slab of
// workgroup memory; the gradients of scores (for dv: the weights) pass from the first layout to the second through sh_weights. Dims are
// loops, so they may be any. dk and dv take a dispatch each: together their sums would not fit the registers of many a GPU. $OWN and
// $WALKED are q and k, or k and q; $PAIR_OWN and $PAIR_WALKED the gradient of the output and v, or the reverse; $SUMMED is what the
// gradient is a sum of.

const TILE_OWN: u32 = TY * ROWS;
const TILE_K: u32 = TX * KEYS;
const WEIGHT_STRIDE: u32 = TILE_OWN / 4u + 1u;   // one more than needed: neighbours tx fall into different banks

var<workgroup> sh_weights: array<array<array<vec4<f32>, WEIGHT_STRIDE>, KEY_STEP>, TILE_K / KEY_STEP>;   // [walked, own / 4], four rows a vec4

// Rows [row / TX, chunk, row % TX] for products, then [row / BLOCK_KEYS, row % BLOCK_KEYS, column] for sums; nested as in the forward pass.
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
    let first = item.tile * TILE_OWN;
    let last = min(first + TILE_OWN, owned(s)) - 1u;

    //$ for r in 0..ROWS
    //$ for u in 0..COLUMNS
    var o_$r_$u = vec4<f32>();
    //$ end
    //$ end
    //$ if SLOPES
    var slope = 0.0;   // of this invocation's rows and keys
    //$ end

    // Some row of the tile meets each row of [start, end). What is cheap to derive, places in memory too, is derived where it is used:
    // registers, not instructions, are what a tile of this size lacks.
    let start = first_walked(s, first);
    let end = end_of_tile(s, first, last);
    let row = first + ty * ROWS;   // padding rows repeat the last one; they are never stored

    //$ if OWNS_KEYS
    // Head after head in one loop: a loop around it would take registers for the bounds that naga gives to each.
    var head = item.head * aux.params.group;
    let heads = head + select(0u, aux.params.group, start < end);
    for (var w0 = start; head < heads; w0 += TILE_K) {
        let walked_head = head;
    //$ end
    //$ if OWNS_QUERIES
    let head = item.head;
    let walked_head = head / aux.params.group;
    for (var w0 = start; w0 < end; w0 += TILE_K) {
    //$ end
        //$ for r in 0..ROWS
        //$ for k in 0..KEYS
        var s_$r_$k = 0.0;
        //$ end
        //$ end
        clear_seen(thread);
        //$ if GRADIENT
        for (var c0 = 0u; c0 < aux.params.value_chunks; c0 += K_CHUNKS) {
            let chunks = min(K_CHUNKS, aux.params.value_chunks - c0);
            workgroupBarrier();   // the slab's previous use, and the previous tile's weights, have been read
            let pair_base = aux.params.$PAIR_OWN.offset + s.batch * aux.params.$PAIR_OWN.batch + item.head * aux.params.$PAIR_OWN.head
                + OWN_START * aux.params.$PAIR_OWN.seq;
            let other_base = aux.params.$PAIR_WALKED.offset + s.batch * aux.params.$PAIR_WALKED.batch + walked_head * aux.params.$PAIR_WALKED.head
                + WALKED_START * aux.params.$PAIR_WALKED.seq;
            //$ for n in 0..K_LOADS
            {
                let walked = (thread + $nu * THREADS) / K_CHUNKS;
                let chunk = thread % K_CHUNKS;
                sh_slab[walked / TX][chunk * K_STRIDE + walked % TX] =
                    load_$PAIR_WALKED(other_base + min(w0 + walked, end - 1u) * aux.params.$PAIR_WALKED.seq, c0 + chunk);
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var c = 0u; c < chunks; c++) {
                //$ for r in 0..ROWS
                let pair_$r = load_$PAIR_OWN(pair_base + min(row + $ru, last) * aux.params.$PAIR_OWN.seq, c0 + c);
                //$ end
                //$ for k in 0..KEYS
                {
                    let other = sh_slab[$k][c * K_STRIDE + tx];
                    //$ for r in 0..ROWS
                    s_$r_$k += dot(pair_$r, other);
                    //$ end
                }
                //$ end
            }
        }
        // They wait where the gradients will be, read and written by this invocation alone, while scores take their registers.
        //$ for k in 0..KEYS
        //$ for r in 0..ROWS step 4
        sh_weights[(tx + $ku * TX) / KEY_STEP][tx % KEY_STEP][ty * (ROWS / 4u) + $ru / 4u] =
            vec4<f32>(s_$r_$k, s_${r+1}_$k, s_${r+2}_$k, s_${r+3}_$k);
        //$ end
        //$ for r in 0..ROWS
        s_$r_$k = 0.0;
        //$ end
        //$ end
        //$ end
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += K_CHUNKS) {
            let chunks = min(K_CHUNKS, aux.params.head_chunks - c0);
            workgroupBarrier();   // the slab's previous use, and the previous tile's weights, have been read
            let own_base = aux.params.$OWN.offset + s.batch * aux.params.$OWN.batch + item.head * aux.params.$OWN.head
                + OWN_START * aux.params.$OWN.seq;
            let walked_base = aux.params.$WALKED.offset + s.batch * aux.params.$WALKED.batch + walked_head * aux.params.$WALKED.head
                + WALKED_START * aux.params.$WALKED.seq;
            //$ for n in 0..K_LOADS
            {
                let walked = (thread + $nu * THREADS) / K_CHUNKS;
                let chunk = thread % K_CHUNKS;
                sh_slab[walked / TX][chunk * K_STRIDE + walked % TX] = load_$WALKED(walked_base + min(w0 + walked, end - 1u) * aux.params.$WALKED.seq, c0 + chunk);
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var c = 0u; c < chunks; c++) {
                //$ for r in 0..ROWS
                let own_$r = load_$OWN(own_base + min(row + $ru, last) * aux.params.$OWN.seq, c0 + c);
                //$ end
                //$ for k in 0..KEYS
                {
                    let walked = sh_slab[$k][c * K_STRIDE + tx];
                    //$ for r in 0..ROWS
                    s_$r_$k += dot(own_$r, walked);
                    //$ end
                }
                //$ end
            }
        }

        // What is summed with the walked rows takes the place of the scores.
        begin_scores(s, head);   // here, so that no option's registers are taken during the products
        // Column by column of what is walked: of dq with options in a loop that drivers do not unroll, since its end is known at run time
        // only, so that one column at a time takes registers. The next column's scores move to where the first one's were.
        //$ if ROLLED
        for (var column = 0u; (column < KEYS) & (w0 + column * TX < end); column++) {
        //$ end
        //$ for k in 0..STRAIGHT_KEYS
        {
            //$ if STRAIGHT
            let column = $ku;
            //$ end
            let w = w0 + tx + column * TX;
            var seen = false;
            //$ if OWNS_KEYS
            let record = rows[record_at(s, head, min(w, end - 1u))];
            //$ end
            //$ for g in 0..ROWS step 4
            //$ if GRADIENT
            let e_$g = sh_weights[(tx + column * TX) / KEY_STEP][tx % KEY_STEP][ty * (ROWS / 4u) + $gu / 4u];
            //$ end
            //$ for r in g..g+4
            {
                let n = min(row + $ru, last);
                //$ if OWNS_QUERIES
                let record = rows[record_at(s, head, n)];
                //$ end
                let lo = first_walked(s, n);
                let seen_rows = max(end_walked(s, n), lo) - lo;
                let t = scored(s_$r_$k * aux.params.score_scale, n, w, w - lo < seen_rows);
                //$ if GRADIENT
                let ds = select(0.0, weight(t.value, record.x) * (e_$g[$r - $g] - record.y), t.visible);
                //$ if SLOPES
                slope -= select(0.0, ds * distance_of(n, w), row + $ru <= last);
                //$ end
                s_$r_$k = ds * t.slope;
                //$ end
                //$ if VALUES
                s_$r_$k = select(0.0, weight(t.value, record.x), t.visible);
                //$ end
                seen = seen | t.visible;
            }
            //$ end
            //$ end
            mark_seen(tx + column * TX, seen);
            //$ for r in 0..ROWS step 4
            sh_weights[(tx + column * TX) / KEY_STEP][tx % KEY_STEP][ty * (ROWS / 4u) + $ru / 4u] =
                vec4<f32>(s_$r_$k, s_${r+1}_$k, s_${r+2}_$k, s_${r+3}_$k);
            //$ end
        }
        //$ end
        //$ if ROLLED
        //$ for r in 0..ROWS
        //$ for k in 0..LAST_KEY
        s_$r_$k = s_$r_${k+1};
        //$ end
        //$ end
        }
        //$ end

        // Weights past the last row are zero, so that rows may be walked KEY_STEP at a time.
        let walked = min(TILE_K, end - w0);
        for (var g = 0u; g < walked; g += V_KEYS) {
            workgroupBarrier();   // the slab's previous use has been read, all weights have been written
            let summed_base = aux.params.$SUMMED.offset + s.batch * aux.params.$SUMMED.batch + walked_head * aux.params.$SUMMED.head
                + WALKED_START * aux.params.$SUMMED.seq;
            //$ for n in 0..V_LOADS
            {
                let place = (thread + $nu * THREADS) / V_STRIDE;
                let column = thread % V_STRIDE;
                let x = load_$SUMMED(summed_base + min(w0 + g + place, end - 1u) * aux.params.$SUMMED.seq, item.split * VALUE_CHUNKS + column);
                sh_slab[place / BLOCK_KEYS][place % BLOCK_KEYS * V_STRIDE + column] = kept(x, key_seen(g + place));
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var n0 = 0u; n0 < min(V_KEYS, walked - g); n0 += KEY_STEP) {
                //$ for n in 0..KEY_STEP
                {
                    //$ for r in 0..ROWS step 4
                    let w_$r = sh_weights[(g + n0) / KEY_STEP][$n][ty * (ROWS / 4u) + $ru / 4u];
                    //$ end
                    //$ for u in 0..COLUMNS
                    {
                        let x = sh_slab[n0 / BLOCK_KEYS + $nu / BLOCK_KEYS][$nu % BLOCK_KEYS * V_STRIDE + tx * COLUMNS + $uu];
                        //$ for r in 0..ROWS step 4
                        o_$r_$u += w_$r.x * x;
                        o_${r+1}_$u += w_$r.y * x;
                        o_${r+2}_$u += w_$r.z * x;
                        o_${r+3}_$u += w_$r.w * x;
                        //$ end
                    }
                    //$ end
                }
                //$ end
            }
        }
        //$ if OWNS_KEYS
        if (end - w0 <= TILE_K) {
            head++;
            w0 = start - TILE_K;
        }
        //$ end
    }

    let column = item.split * VALUE_CHUNKS + tx * COLUMNS;
    let result_base = aux.params.$RESULT.offset + s.batch * aux.params.$RESULT.batch + item.head * aux.params.$RESULT.head
        + OWN_START * aux.params.$RESULT.seq;
    //$ for r in 0..ROWS
    if (row + $ru <= last) {
        let result_row = result_base + (row + $ru) * aux.params.$RESULT.seq;
        //$ for u in 0..COLUMNS
        if (tx * COLUMNS + $uu < VALUE_CHUNKS) {
            //$ if GRADIENT
            store_$RESULT(result_row, column + $uu, o_$r_$u * aux.params.gradient_scale);
            //$ end
            //$ if VALUES
            store_$RESULT(result_row, column + $uu, o_$r_$u);
            //$ end
        }
        //$ end
    }
    //$ end
    //$ if SLOPES
    // The first row has the sum of all.
    let slopes = row_sum(thread, vec4<f32>(slope, 0.0, 0.0, 0.0));
    if ((tx == 0u) & (item.split == 0u)) {
        //$ for r in 0..ROWS
        if (row + $ru <= last) {
            rows[record_at(s, item.head, row + $ru)].z = slopes[$r];
        }
        //$ end
    }
    //$ end
}
