// The backward pass of softmax attention (FlashAttention-2, arXiv 2307.08691) on cooperative matrices, for GPUs that multiply them in
// hardware: one of its three gradients.
//
//   p_ij = exp(s_ij - LSE_i),  ds_ij = p_ij (dO_i . v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i,  dv_j = sum_i p_ij dO_i
//
// As on tiles (flash_backward_tile), a workgroup owns queries, for dq, and walks the keys that they see; or it owns keys, for dk or dv, and
// walks the queries that see them, of all heads that share these keys. As in the forward pass (flash_forward_matrix), it owns STRIPS strips
// of SIDE rows, LEAST to OWN of them a subgroup's, or none, whose matrices keep these rows and their result; it walks TILE_K rows at a time; and an
// `if` on what only a subgroup agrees on is a `loop`. Products pass through sh_scores, in f32, to TX invocations a row: first dO . v, then
// the scores. What is summed goes back, in f16, at WEIGHTS_AT of the slab, beside what it is summed with.
//
// f16 has room for what is summed: weights, at most 1, are held times WEIGHT_UNIT; gradients of scores, of any size, times a power of two of
// their row, which brings its largest to some 2^8. One that would reach 2^15 takes another, and the sums of all rows make a detour through
// sh_scores, rarely. What is 2^22 below the largest of its row is still held in full.

const TILE_OWN: u32 = STRIPS * SIDE;
const TILE_K: u32 = KEY_BLOCKS * SIDE;
const KEYS: u32 = KEY_CHUNKS * 4u;                  // walked rows an invocation
const HEAD_CHUNKS: u32 = HEAD_BLOCKS * SIDE / 4u;   // columns of the slab: of products over the head dim
const PAIR_CHUNKS: u32 = PAIR_BLOCKS * SIDE / 4u;   // and over the value dim
const GROUP_CHUNKS: u32 = GROUP * SIDE / 4u;

// Rows of workgroup memory, in 16 bytes, are one longer than needed: neighbours fall into different banks.
const HEAD_STRIDE: u32 = HEAD_CHUNKS / 2u + 1u;
const PAIR_STRIDE: u32 = PAIR_CHUNKS / 2u + 1u;
const KEY_STRIDE: u32 = TILE_K / 8u + 1u;
const SCORE_STRIDE: u32 = TILE_K / 4u + 1u;

// Places in the slab.
const PAIR_AT: u32 = HELD * TILE_K * HEAD_STRIDE;         // walked rows of the value dim: behind those of the head dim, or after them
const WEIGHTS_AT: u32 = VALUE_CHUNKS * 4u * KEY_STRIDE;   // what is summed, behind the columns that it is summed with

//$ if VALUES
// Weights are a little above 1 where the log-sum-exp was rounded.
const WEIGHT_UNIT: f32 = 16384.0;
//$ end
//$ if GRADIENT
var<workgroup> sh_risen: atomic<u32>;   // whether a row with sums has taken another power
const MARGIN: u32 = 6u;                 // by how much the exponent of the largest may rise before
const LEAST_EXPONENT: u32 = 9u;         // of rows without gradients, or with none of 2^-117: both powers below are normal numbers

// What the gradients of a row are multiplied by where its largest had this exponent, as f32 stores it; and the inverse.
fn unit(exponent: u32) -> f32 {
    return bitcast<f32>((262u - exponent) << 23u);
}

fn inverse_unit(exponent: u32) -> f32 {
    return bitcast<f32>((exponent - 8u) << 23u);
}
//$ end
//$ if OWNS_KEYS
var<workgroup> sh_records: array<vec2<f32>, TILE_K>;   // log-sum-exp and delta of the queries that are walked
//$ end

// The walked rows that are summed, w0.., reach the slab by column, four rows and four columns an invocation at a time.
fn stage_columns(thread: u32, base: u32, column: u32, w0: u32, end: u32) {
    for (var n = thread; n < TILE_K / 4u * VALUE_CHUNKS; n += THREADS) {
        let walked = n % (TILE_K / 4u) * 4u;
        let chunk = n / (TILE_K / 4u);
        //$ for k in 0..4
        let x_$k = kept(load_$SUMMED(base + min(w0 + walked + $ku, end - 1u) * aux.params.$SUMMED.seq, column + chunk), key_seen(walked + $ku));
        //$ end
        //$ for e in 0..4
        sh_slab[(chunk * 4u + $eu) * KEY_STRIDE + walked / 8u][walked / 4u % 2u] = halves(vec4<f32>(x_0[$e], x_1[$e], x_2[$e], x_3[$e]));
        //$ end
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(num_subgroups) subgroups: u32,
    INVOCATION_BUILTINS
) {
    let invocation = INVOCATION;
    let thread = thread_index(invocation);
    let item = item_at(workgroup, grid);   // one that is not live walks nothing and stores nothing: matrices forbid to return here
    let s = sequence_at(item.record);
    let first = item.tile * TILE_OWN;
    let last = min(first + TILE_OWN, owned(s)) - 1u;

    // Some row of the tile meets each row of [start, end).
    let start = first_walked(s, first);
    let end = select(start, end_of_tile(s, first, last), item.live);
    let own_base = aux.params.$OWN.offset + s.batch * aux.params.$OWN.batch + item.head * aux.params.$OWN.head + OWN_START * aux.params.$OWN.seq;
    //$ if GRADIENT
    let pair_base = aux.params.$PAIR_OWN.offset + s.batch * aux.params.$PAIR_OWN.batch + item.head * aux.params.$PAIR_OWN.head
        + OWN_START * aux.params.$PAIR_OWN.seq;
    //$ end

    // The elements of a row; padding rows repeat the last one and are never stored.
    let row = thread / TX;
    let tx = thread % TX;
    let own = min(first + row, last);
    let lo = first_walked(s, own);
    let seen_rows = max(end_walked(s, own), lo) - lo;
    //$ if OWNS_QUERIES
    let record = rows[record_at(s, item.head, own)].xy;
    //$ end
    //$ if SLOPES
    var slope = 0.0;   // of this invocation's keys alone, until the end
    //$ end
    //$ if GRADIENT
    var exponent = LEAST_EXPONENT;   // that the power of this row is taken from
    //$ end

    let count = (STRIPS + subgroups - 1u - invocation.subgroup) / subgroups;   // strips of this subgroup
    //$ for b in 0..OWN
    let strip_$b = invocation.subgroup + $bu * subgroups;
    //$ for v in 0..VALUE_BLOCKS
    var o_$b_$v = Sum();
    //$ end
    //$ end
    //$ if HELD
    for (var n = 0u; n < TILE_OWN; n += TILE_K) {
        stage_$OWN(thread, own_base, first + n, last, 0u, n * HEAD_STRIDE);
    }
    workgroupBarrier();   // the slab is whole
    //$ for b in 0..OWN
    //$ for h in 0..HEAD_BLOCKS
    var own_$b_$h = Left();
    //$ if GUARDED
    loop {
        if (strip_$b >= STRIPS) { break; }
    //$ end
        own_$b_$h = coopLoadT<Left>(&sh_slab[strip_$b * SIDE * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
    //$ if GUARDED
        break;
    }
    //$ end
    //$ end
    //$ end
    //$ if GRADIENT
    workgroupBarrier();   // the slab has been read
    for (var n = 0u; n < TILE_OWN; n += TILE_K) {
        stage_$PAIR_OWN(thread, pair_base, first + n, last, 0u, n * PAIR_STRIDE);
    }
    workgroupBarrier();   // the slab is whole
    //$ for b in 0..OWN
    //$ for h in 0..PAIR_BLOCKS
    var pair_$b_$h = Left();
    //$ if GUARDED
    loop {
        if (strip_$b >= STRIPS) { break; }
    //$ end
        pair_$b_$h = coopLoadT<Left>(&sh_slab[strip_$b * SIDE * PAIR_STRIDE + $hu * SIDE / 8u][0][0], PAIR_STRIDE * 8u);
    //$ if GUARDED
        break;
    }
    //$ end
    //$ end
    //$ end
    //$ end
    //$ end

    //$ if OWNS_KEYS
    // Head after head in one loop, as on tiles.
    var head = item.head * aux.params.group;
    let heads = head + select(0u, aux.params.group, start < end);
    for (var w0 = start; head < heads; w0 += TILE_K) {
        let walked_head = head;
        begin_scores(s, head);
    //$ end
    //$ if OWNS_QUERIES
    let walked_head = item.head / aux.params.group;
    begin_scores(s, item.head);
    for (var w0 = start; w0 < end; w0 += TILE_K) {
    //$ end
        let walked_base = aux.params.$WALKED.offset + s.batch * aux.params.$WALKED.batch + walked_head * aux.params.$WALKED.head
            + WALKED_START * aux.params.$WALKED.seq;
        //$ if GRADIENT
        let other_base = aux.params.$PAIR_WALKED.offset + s.batch * aux.params.$PAIR_WALKED.batch + walked_head * aux.params.$PAIR_WALKED.head
            + WALKED_START * aux.params.$PAIR_WALKED.seq;
        //$ end
        let summed_base = aux.params.$SUMMED.offset + s.batch * aux.params.$SUMMED.batch + walked_head * aux.params.$SUMMED.head
            + WALKED_START * aux.params.$SUMMED.seq;
        clear_seen(thread);
        //$ if GRADIENT
        if (thread == 0u) {
            atomicStore(&sh_risen, 0u);
        }
        //$ end
        //$ if OWNS_KEYS
        if (thread < TILE_K) {
            sh_records[thread] = rows[record_at(s, head, min(w0 + thread, end - 1u))].xy;
        }
        //$ end

        //$ if HELD
        workgroupBarrier();   // the slab's previous use has been read
        stage_$WALKED(thread, walked_base, w0, end - 1u, 0u, 0u);
        //$ if GRADIENT
        stage_$PAIR_WALKED(thread, other_base, w0, end - 1u, 0u, PAIR_AT);
        //$ end
        workgroupBarrier();   // the slab is whole
        //$ end

        //$ if GRADIENT
        //$ for b in 0..OWN
        //$ for k in 0..KEY_BLOCKS
        var e_$b_$k = Sum();
        //$ end
        //$ end
        //$ if HELD
        {
        //$ end
        //$ if STREAMED
        for (var c0 = 0u; c0 < aux.params.value_chunks; c0 += PAIR_CHUNKS) {
            workgroupBarrier();   // the slab's previous use has been read
            stage_$PAIR_WALKED(thread, other_base, w0, end - 1u, c0, PAIR_AT);
            for (var n = 0u; n < TILE_OWN; n += TILE_K) {
                stage_$PAIR_OWN(thread, pair_base, first + n, last, c0, (TILE_K + n) * PAIR_STRIDE);
            }
            workgroupBarrier();   // the slab is whole
        //$ end
            //$ for n in LEAST..OWN+1
            //$ if GUARDED
            loop {
                if (count != $nu) { break; }
            //$ end
                //$ for h in 0..PAIR_BLOCKS
                {
                    //$ if STREAMED
                    //$ for b in 0..n
                    let pair_$b_$h = coopLoadT<Left>(&sh_slab[(TILE_K + strip_$b * SIDE) * PAIR_STRIDE + $hu * SIDE / 8u][0][0], PAIR_STRIDE * 8u);
                    //$ end
                    //$ end
                    //$ for k in 0..KEY_BLOCKS
                    let other_$k = coopLoad<Right>(&sh_slab[PAIR_AT + $ku * SIDE * PAIR_STRIDE + $hu * SIDE / 8u][0][0], PAIR_STRIDE * 8u);
                    //$ for b in 0..n
                    e_$b_$k = coopMultiplyAdd(pair_$b_$h, other_$k, e_$b_$k);
                    //$ end
                    //$ end
                }
                //$ end
            //$ if GUARDED
                break;
            }
            //$ end
            //$ end
        }
        //$ for b in 0..OWN
        //$ if GUARDED
        loop {
            if (strip_$b >= STRIPS) { break; }
        //$ end
            //$ for k in 0..KEY_BLOCKS
            coopStoreT(e_$b_$k, &sh_scores[strip_$b * SIDE * SCORE_STRIDE + $ku * SIDE / 4u][0], SCORE_STRIDE * 4u);
            //$ end
        //$ if GUARDED
            break;
        }
        //$ end
        //$ end
        workgroupBarrier();   // the products with values have been written
        //$ for c in 0..KEY_CHUNKS
        let e_$c = sh_scores[row * SCORE_STRIDE + tx * KEY_CHUNKS + $cu];
        //$ end
        //$ end
        //$ for b in 0..OWN
        //$ for k in 0..KEY_BLOCKS
        var s_$b_$k = Sum();
        //$ end
        //$ end
        //$ if HELD
        {
        //$ end
        //$ if STREAMED
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += HEAD_CHUNKS) {
            workgroupBarrier();   // the slab's previous use has been read
            stage_$WALKED(thread, walked_base, w0, end - 1u, c0, 0u);
            for (var n = 0u; n < TILE_OWN; n += TILE_K) {
                stage_$OWN(thread, own_base, first + n, last, c0, (TILE_K + n) * HEAD_STRIDE);
            }
            workgroupBarrier();   // the slab is whole
        //$ end
            //$ for n in LEAST..OWN+1
            //$ if GUARDED
            loop {
                if (count != $nu) { break; }
            //$ end
                //$ for h in 0..HEAD_BLOCKS
                {
                    //$ if STREAMED
                    //$ for b in 0..n
                    let own_$b_$h = coopLoadT<Left>(&sh_slab[(TILE_K + strip_$b * SIDE) * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
                    //$ end
                    //$ end
                    //$ for k in 0..KEY_BLOCKS
                    let walked_$k = coopLoad<Right>(&sh_slab[$ku * SIDE * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
                    //$ for b in 0..n
                    s_$b_$k = coopMultiplyAdd(own_$b_$h, walked_$k, s_$b_$k);
                    //$ end
                    //$ end
                }
                //$ end
            //$ if GUARDED
                break;
            }
            //$ end
            //$ end
        }
        //$ if GRADIENT
        workgroupBarrier();   // they have been read
        //$ end
        //$ for b in 0..OWN
        //$ if GUARDED
        loop {
            if (strip_$b >= STRIPS) { break; }
        //$ end
            //$ for k in 0..KEY_BLOCKS
            coopStoreT(s_$b_$k, &sh_scores[strip_$b * SIDE * SCORE_STRIDE + $ku * SIDE / 4u][0], SCORE_STRIDE * 4u);
            //$ end
        //$ if GUARDED
            break;
        }
        //$ end
        //$ end
        workgroupBarrier();   // all scores have been written, the slab has been read
        //$ if EARLY
        stage_columns(thread, summed_base, item.split * VALUE_CHUNKS, w0, end);
        //$ end

        //$ if GRADIENT
        var largest = 0.0;
        //$ end
        let at = w0 + tx * KEYS - lo;   // wraps before the range, so that one comparison tells both ends
        //$ for c in 0..KEY_CHUNKS
        let s_$c = sh_scores[row * SCORE_STRIDE + tx * KEY_CHUNKS + $cu];
        //$ for e in 0..4
        let t_$c_$e = scored(s_$c[$e] * aux.params.score_scale, own, w0 + tx * KEYS + ($cu * 4u + $eu), at + ($cu * 4u + $eu) < seen_rows);
        mark_seen(tx * KEYS + ($cu * 4u + $eu), t_$c_$e.visible);
        //$ if OWNS_KEYS
        let r_$c_$e = sh_records[tx * KEYS + ($cu * 4u + $eu)];
        //$ end
        //$ if OWNS_QUERIES
        let r_$c_$e = record;
        //$ end
        //$ if GRADIENT
        let ds_$c_$e = select(0.0, weight(t_$c_$e.value, r_$c_$e.x) * (e_$c[$e] - r_$c_$e.y), t_$c_$e.visible);
        //$ if SLOPES
        slope -= ds_$c_$e * distance_of(own, w0 + tx * KEYS + ($cu * 4u + $eu));
        //$ end
        let w_$c_$e = ds_$c_$e * t_$c_$e.slope;
        largest = max(largest, abs(w_$c_$e));
        //$ end
        //$ if VALUES
        let w_$c_$e = select(0.0, weight(t_$c_$e.value, r_$c_$e.x), t_$c_$e.visible);
        //$ end
        //$ end
        //$ end

        //$ if GRADIENT
        let met = bitcast<u32>(row_max(thread, vec4<f32>(largest)).x) >> 23u;
        let rises = (met > exponent + MARGIN) | ((exponent == LEAST_EXPONENT) & (met > exponent));
        if (rises & (exponent != LEAST_EXPONENT)) {
            atomicOr(&sh_risen, 1u);
        }
        let risen = select(exponent, met, rises);
        let factor = unit(risen) * inverse_unit(exponent);
        exponent = risen;
        if (workgroupUniformLoad(&sh_risen) != 0u) {   // a barrier too
            //$ for g in 0..VALUE_BLOCKS step GROUP
            //$ for b in 0..OWN
            //$ if GUARDED
            loop {
                if (strip_$b >= STRIPS) { break; }
            //$ end
                //$ for v in g..g+GROUP
                coopStoreT(o_$b_$v, &sh_scores[strip_$b * SIDE * SCORE_STRIDE + ($vu - $gu) * SIDE / 4u][0], SCORE_STRIDE * 4u);
                //$ end
            //$ if GUARDED
                break;
            }
            //$ end
            //$ end
            workgroupBarrier();   // the group has been written
            for (var c = tx; c < GROUP_CHUNKS; c += TX) {
                let x = sh_scores[row * SCORE_STRIDE + c];
                sh_scores[row * SCORE_STRIDE + c] = array<f32, 4>(x[0] * factor, x[1] * factor, x[2] * factor, x[3] * factor);
            }
            workgroupBarrier();   // it has been rescaled
            //$ for b in 0..OWN
            //$ if GUARDED
            loop {
                if (strip_$b >= STRIPS) { break; }
            //$ end
                //$ for v in g..g+GROUP
                o_$b_$v = coopLoadT<Sum>(&sh_scores[strip_$b * SIDE * SCORE_STRIDE + ($vu - $gu) * SIDE / 4u][0], SCORE_STRIDE * 4u);
                //$ end
            //$ if GUARDED
                break;
            }
            //$ end
            //$ end
            workgroupBarrier();   // and read
            //$ end
        }
        let power = select(unit(exponent), 0.0, exponent == LEAST_EXPONENT);   // nothing is summed before a power is chosen
        //$ end
        //$ if VALUES
        let power = WEIGHT_UNIT;
        //$ end
        //$ for c in 0..KEY_CHUNKS
        sh_slab[WEIGHTS_AT + row * KEY_STRIDE + (tx * KEY_CHUNKS + $cu) / 2u][(tx * KEY_CHUNKS + $cu) % 2u] =
            halves(vec4<f32>(w_$c_0, w_$c_1, w_$c_2, w_$c_3) * power);
        //$ end
        //$ if LATE
        //$ if VALUES
        workgroupBarrier();   // all that is seen has been marked
        //$ end
        stage_columns(thread, summed_base, item.split * VALUE_CHUNKS, w0, end);
        //$ end
        workgroupBarrier();   // the slab is whole
        //$ for n in LEAST..OWN+1
        //$ if GUARDED
        loop {
            if (count != $nu) { break; }
        //$ end
            //$ for k in 0..KEY_BLOCKS
            {
                //$ for b in 0..n
                let w_$b = coopLoadT<Left>(&sh_slab[WEIGHTS_AT + strip_$b * SIDE * KEY_STRIDE + $ku * SIDE / 8u][0][0], KEY_STRIDE * 8u);
                //$ end
                //$ for v in 0..VALUE_BLOCKS
                let x_$v = coopLoad<Right>(&sh_slab[$vu * SIDE * KEY_STRIDE + $ku * SIDE / 8u][0][0], KEY_STRIDE * 8u);
                //$ for b in 0..n
                o_$b_$v = coopMultiplyAdd(w_$b, x_$v, o_$b_$v);
                //$ end
                //$ end
            }
            //$ end
        //$ if GUARDED
            break;
        }
        //$ end
        //$ end
        //$ if OWNS_KEYS
        if (end - w0 <= TILE_K) {
            head++;
            w0 = start - TILE_K;
        }
        //$ end
    }

    //$ if GRADIENT
    let scale = aux.params.gradient_scale * inverse_unit(exponent);
    //$ end
    //$ if VALUES
    let scale = 1.0 / WEIGHT_UNIT;
    //$ end
    let stored = item.live & (first + row <= last);
    let result_row = aux.params.$RESULT.offset + s.batch * aux.params.$RESULT.batch + item.head * aux.params.$RESULT.head
        + (OWN_START + own) * aux.params.$RESULT.seq;
    //$ for g in 0..VALUE_BLOCKS step GROUP
    workgroupBarrier();   // the previous group has been read
    //$ for b in 0..OWN
    //$ if GUARDED
    loop {
        if (strip_$b >= STRIPS) { break; }
    //$ end
        //$ for v in g..g+GROUP
        coopStoreT(o_$b_$v, &sh_scores[strip_$b * SIDE * SCORE_STRIDE + ($vu - $gu) * SIDE / 4u][0], SCORE_STRIDE * 4u);
        //$ end
    //$ if GUARDED
        break;
    }
    //$ end
    //$ end
    workgroupBarrier();   // the group has been written
    for (var c = tx; (c < GROUP_CHUNKS) & stored; c += TX) {
        let x = sh_scores[row * SCORE_STRIDE + c];
        store_$RESULT(result_row, item.split * VALUE_CHUNKS + $gu * SIDE / 4u + c, vec4<f32>(x[0], x[1], x[2], x[3]) * scale);
    }
    //$ end
    //$ if SLOPES
    let slopes = row_sum(thread, vec4<f32>(slope)).x;
    if (stored & (tx == 0u) & (item.split == 0u)) {
        rows[record_at(s, item.head, own)].z = slopes;
    }
    //$ end
}
