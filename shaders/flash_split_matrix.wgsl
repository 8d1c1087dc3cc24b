// Softmax attention of few rows over a stretch of many keys (Flash-Decoding) on cooperative matrices, for GPUs that multiply them in
// hardware. Partial results are merged by flash_merge.
//
//   l = sum_j exp(s_j - m),  o = sum_j exp(s_j - m) v_j   for each row, over the keys j of the stretch; m near their maximum
//
// Matrices, scores and weights are those of flash_forward_matrix, `loop`s for `if`s too. A workgroup owns STRIPS strips of SIDE rows, the
// last row standing in for those that are not there, and walks TILE_K keys at a time. Few rows are enough for one subgroup, so that
// subgroups share out columns: each multiplies all rows by every `subgroups`-th block of SIDE keys, then their weights by every
// `subgroups`-th block of SIDE value columns, whose output stays in its matrices.

const ROWS: u32 = STRIPS * SIDE;
const TILE_K: u32 = KEY_BLOCKS * SIDE;
const KEYS: u32 = KEY_CHUNKS * 4u;                  // keys an invocation
const HEAD_CHUNKS: u32 = HEAD_BLOCKS * SIDE / 4u;   // head-dim columns of the slab
const SIDE_CHUNKS: u32 = SIDE / 4u;

// Rows of workgroup memory, in 16 bytes, are one longer than needed: neighbours fall into different banks.
const HEAD_STRIDE: u32 = HEAD_CHUNKS / 2u + 1u;
const KEY_STRIDE: u32 = TILE_K / 8u + 1u;
const SCORE_STRIDE: u32 = SCORE_COLUMNS / 4u + 1u;

var<workgroup> sh_weights: array<Half8, ROWS * KEY_STRIDE>;   // [row, key]

@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(num_subgroups) subgroups: u32,
    INVOCATION_BUILTINS
) {
    let invocation = INVOCATION;
    let thread = thread_index(invocation);
    let item = item_at(workgroup, grid);   // one that is not live has no keys and stores nothing: matrices forbid to return here
    let s = sequence_at(item.record);
    let group = aux.params.group;
    let first = item.tile * ROWS;
    let last = s.queries * group - 1u;
    let k_first = k_base(s, item.kv_head);
    let v_first = v_base(s, item.kv_head);

    // The softmax of a row.
    let row = thread / TX;
    let tx = thread % TX;
    let packed = min(first + row, last);
    let i = packed / group;
    begin_scores(s, item.kv_head * group + packed % group);
    let lo = first_key(s, i);
    let seen_keys = max(min(end_key(s, i), item.end), lo) - lo;
    var running = Running(lowest(), 0.0, 0.0);

    //$ if HELD
    for (var n = thread; n < ROWS * HEAD_CHUNKS; n += THREADS) {
        let chunk = n % HEAD_CHUNKS;
        let q = load_q(q_row(s, item.kv_head, min(first + n / HEAD_CHUNKS, last)), chunk);
        sh_slab[n / HEAD_CHUNKS * HEAD_STRIDE + chunk / 2u][chunk % 2u] = halves(within_head(chunk, q));
    }
    workgroupBarrier();   // the slab is whole
    //$ for s in 0..STRIPS
    //$ for h in 0..HEAD_BLOCKS
    let q_$s_$h = coopLoadT<Left>(&sh_slab[$su * SIDE * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
    //$ end
    //$ end
    //$ end
    //$ for b in 0..KEY_OWN
    let key_block_$b = invocation.subgroup + $bu * subgroups;
    //$ end
    //$ for b in 0..VALUE_OWN
    let value_block_$b = invocation.subgroup + $bu * subgroups;
    //$ for s in 0..STRIPS
    var o_$s_$b = Sum();
    //$ end
    //$ end

    for (var j0 = item.first; j0 < item.end; j0 += TILE_K) {
        //$ for s in 0..STRIPS
        //$ for b in 0..KEY_OWN
        var s_$s_$b = Sum();
        //$ end
        //$ end
        clear_seen(thread);
        if (thread == 0u) {
            atomicStore(&sh_risen, 0u);
        }
        //$ if HELD
        {
            let c0 = 0u;
        //$ end
        //$ if STREAMED
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += HEAD_CHUNKS) {
        //$ end
            workgroupBarrier();   // the slab's previous use has been read
            //$ for n in 0..K_LOADS
            {
                // The last key stands in for those past it, whose scores are never looked at.
                let key = (thread + $nu * THREADS) / HEAD_CHUNKS;
                let chunk = (thread + $nu * THREADS) % HEAD_CHUNKS;
                let k = load_k(k_row(k_first, s, min(j0 + key, item.end - 1u)), c0 + chunk);
                sh_slab[key * HEAD_STRIDE + chunk / 2u][chunk % 2u] = halves(within_head(c0 + chunk, k));
            }
            //$ end
            //$ if STREAMED
            for (var n = thread; n < ROWS * HEAD_CHUNKS; n += THREADS) {
                let chunk = n % HEAD_CHUNKS;
                let q = load_q(q_row(s, item.kv_head, min(first + n / HEAD_CHUNKS, last)), c0 + chunk);
                sh_slab[(TILE_K + n / HEAD_CHUNKS) * HEAD_STRIDE + chunk / 2u][chunk % 2u] = halves(within_head(c0 + chunk, q));
            }
            //$ end
            //$ if EARLY
            stage_values(thread, s, v_first, item.split * VALUE_CHUNKS, j0, item.end);
            //$ end
            workgroupBarrier();   // the slab is whole
            //$ if STREAMED
            //$ for s in 0..STRIPS
            //$ for h in 0..HEAD_BLOCKS
            let q_$s_$h = coopLoadT<Left>(&sh_slab[(TILE_K + $su * SIDE) * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
            //$ end
            //$ end
            //$ end
            //$ for b in 0..KEY_OWN
            //$ if KEY_GUARDED
            loop {
                if (key_block_$b >= KEY_BLOCKS) { break; }
            //$ end
                //$ for h in 0..HEAD_BLOCKS
                {
                    let k = coopLoad<Right>(&sh_slab[key_block_$b * SIDE * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
                    //$ for s in 0..STRIPS
                    s_$s_$b = coopMultiplyAdd(q_$s_$h, k, s_$s_$b);
                    //$ end
                }
                //$ end
            //$ if KEY_GUARDED
                break;
            }
            //$ end
            //$ end
        }
        //$ for b in 0..KEY_OWN
        //$ if KEY_GUARDED
        loop {
            if (key_block_$b >= KEY_BLOCKS) { break; }
        //$ end
            //$ for s in 0..STRIPS
            coopStoreT(s_$s_$b, &sh_scores[$su * SIDE * SCORE_STRIDE + key_block_$b * SIDE_CHUNKS][0], SCORE_STRIDE * 4u);
            //$ end
        //$ if KEY_GUARDED
            break;
        }
        //$ end
        //$ end
        workgroupBarrier();   // all scores have been written

        running = weigh(thread, row, tx, i, j0, lo, seen_keys, running);

        let risen = workgroupUniformLoad(&sh_risen);   // a barrier too: all weights have been written, the slab has been read
        //$ if LATE
        stage_values(thread, s, v_first, item.split * VALUE_CHUNKS, j0, item.end);
        workgroupBarrier();   // the values are there
        //$ end
        if (risen != 0u) {
            // Block after block of each subgroup, those of all beside each other.
            //$ for b in 0..VALUE_OWN
            //$ if VALUE_GUARDED
            loop {
                if (value_block_$b >= VALUE_BLOCKS) { break; }
            //$ end
                //$ for s in 0..STRIPS
                coopStoreT(o_$s_$b, &sh_scores[$su * SIDE * SCORE_STRIDE + invocation.subgroup * SIDE_CHUNKS][0], SCORE_STRIDE * 4u);
                //$ end
            //$ if VALUE_GUARDED
                break;
            }
            //$ end
            workgroupBarrier();   // they have been written
            for (var c = tx; c < subgroups * SIDE_CHUNKS; c += TX) {
                let x = sh_scores[row * SCORE_STRIDE + c];
                sh_scores[row * SCORE_STRIDE + c] = array<f32, 4>(x[0] * running.old, x[1] * running.old, x[2] * running.old, x[3] * running.old);
            }
            workgroupBarrier();   // they have been rescaled
            //$ if VALUE_GUARDED
            loop {
                if (value_block_$b >= VALUE_BLOCKS) { break; }
            //$ end
                //$ for s in 0..STRIPS
                o_$s_$b = coopLoadT<Sum>(&sh_scores[$su * SIDE * SCORE_STRIDE + invocation.subgroup * SIDE_CHUNKS][0], SCORE_STRIDE * 4u);
                //$ end
            //$ if VALUE_GUARDED
                break;
            }
            //$ end
            workgroupBarrier();   // and read
            //$ end
        }
        //$ for s in 0..STRIPS
        //$ for k in 0..KEY_BLOCKS
        let weights_$s_$k = coopLoadT<Left>(&sh_weights[$su * SIDE * KEY_STRIDE + $ku * SIDE / 8u][0][0], KEY_STRIDE * 8u);
        //$ end
        //$ end
        //$ for b in 0..VALUE_OWN
        //$ if VALUE_GUARDED
        loop {
            if (value_block_$b >= VALUE_BLOCKS) { break; }
        //$ end
            //$ for k in 0..KEY_BLOCKS
            {
                let v = coopLoad<Right>(&sh_slab[VALUES_AT + value_block_$b * SIDE * KEY_STRIDE + $ku * SIDE / 8u][0][0], KEY_STRIDE * 8u);
                //$ for s in 0..STRIPS
                o_$s_$b = coopMultiplyAdd(weights_$s_$k, v, o_$s_$b);
                //$ end
            }
            //$ end
        //$ if VALUE_GUARDED
            break;
        }
        //$ end
        //$ end
    }

    let sum = row_sum(thread, vec4<f32>(running.l)).x;
    let stored = item.live & (first + row <= last);
    let partial = partial_at(item.kv_head, item.partial + row);
    //$ for b in 0..VALUE_OWN
    workgroupBarrier();   // the previous blocks have been read
    //$ if VALUE_GUARDED
    loop {
        if (value_block_$b >= VALUE_BLOCKS) { break; }
    //$ end
        //$ for s in 0..STRIPS
        coopStoreT(o_$s_$b, &sh_scores[$su * SIDE * SCORE_STRIDE + invocation.subgroup * SIDE_CHUNKS][0], SCORE_STRIDE * 4u);
        //$ end
    //$ if VALUE_GUARDED
        break;
    }
    //$ end
    workgroupBarrier();   // the blocks have been written
    for (var c = tx; (c < subgroups * SIDE_CHUNKS) & stored; c += TX) {
        let x = sh_scores[row * SCORE_STRIDE + c];
        let chunk = $bu * subgroups * SIDE_CHUNKS + c;
        let column = item.split * VALUE_CHUNKS + chunk;
        if ((chunk < VALUE_CHUNKS) & (column < aux.params.value_chunks)) {
            partials[partial + column] = vec4<f32>(x[0], x[1], x[2], x[3]);
        }
    }
    //$ end
    if (stored & (tx == 0u) & (item.split == 0u)) {
        partials[partial + aux.params.value_chunks] = vec4<f32>(running.m, sum, 0.0, 0.0);
    }
}
