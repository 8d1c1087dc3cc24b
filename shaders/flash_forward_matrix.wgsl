// Softmax attention forward (FlashAttention, arXiv 2307.08691) on cooperative matrices, for GPUs that multiply them in hardware.
//
//   out_i = sum_j exp(s_ij - LSE_i) v_j,  LSE_i = log sum_j exp(s_ij)
//
// Matrices have SIDE rows and columns: f16 factors, f32 sums. A workgroup owns STRIPS strips of SIDE queries and walks the keys TILE_K at
// a time. A subgroup multiplies for strips `subgroup`, `subgroup + subgroups`, ..: LEAST to OWN of them, or none, as its actual size has it. Their
// queries and their output stay in its matrices. Matrices have no elements, so scores pass through sh_scores, in f32, to TX invocations a
// row, whose softmax leaves weights, in f16, in sh_weights. Queries, keys and values reach the matrices through sh_slab.
// `loop { if (..) { break; } .. break; }` is an `if` on what only a subgroup agrees on: validation forbids matrices in one, not in a loop.
// A row's weights are taken from a reference that follows its maximum only when that is MARGIN above it: the output is rescaled, on a
// detour through sh_scores, rarely. Sums of weights stay in f32.

const TILE_Q: u32 = STRIPS * SIDE;
const TILE_K: u32 = KEY_BLOCKS * SIDE;
const KEYS: u32 = KEY_CHUNKS * 4u;         // keys an invocation
const HEAD_CHUNKS: u32 = HEAD_BLOCKS * SIDE / 4u;   // head-dim columns of the slab
const GROUP_CHUNKS: u32 = GROUP * SIDE / 4u;

// Rows of workgroup memory, in 16 bytes, are one longer than needed: neighbours fall into different banks.
const HEAD_STRIDE: u32 = HEAD_CHUNKS / 2u + 1u;
const KEY_STRIDE: u32 = TILE_K / 8u + 1u;
const SCORE_STRIDE: u32 = TILE_K / 4u + 1u;

var<workgroup> sh_weights: array<Half8, TILE_Q * KEY_STRIDE>;   // [query, key]

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(num_subgroups) subgroups: u32,
    INVOCATION_BUILTINS
) {
    let invocation = INVOCATION;
    let thread = thread_index(invocation);
    let item = item_at(workgroup, grid);   // one that is not live walks no keys and stores nothing: matrices forbid to return here
    let s = sequence_at(item.record);
    let head = item.head;
    begin_scores(s, head);
    let first = item.tile * TILE_Q;
    let last = min(first + TILE_Q, s.queries) - 1u;

    // Some row of the tile sees each key of [start, end).
    let start = first_key(s, first);
    let end = select(start, end_key(s, last), item.live);
    let kv_head = head / aux.params.group;
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head + s.q_start * aux.params.q.seq;
    let k_first = k_base(s, kv_head);
    let v_first = v_base(s, kv_head);

    // The softmax of a row; padding rows repeat the last query and are never stored.
    let row = thread / TX;
    let tx = thread % TX;
    let i = min(first + row, last);
    let lo = first_key(s, i);
    let seen_keys = max(end_key(s, i), lo) - lo;
    var running = Running(lowest(), 0.0, 0.0);

    //$ if HELD
    for (var n = thread; n < TILE_Q * HEAD_CHUNKS; n += THREADS) {
        let chunk = n % HEAD_CHUNKS;
        let q = load_q(q_base + min(first + n / HEAD_CHUNKS, last) * aux.params.q.seq, chunk);
        sh_slab[n / HEAD_CHUNKS * HEAD_STRIDE + chunk / 2u][chunk % 2u] = halves(within_head(chunk, q));
    }
    workgroupBarrier();   // the slab is whole
    //$ end
    let count = (STRIPS + subgroups - 1u - invocation.subgroup) / subgroups;   // strips of this subgroup
    //$ for b in 0..OWN
    let strip_$b = invocation.subgroup + $bu * subgroups;
    //$ if HELD
    //$ for h in 0..HEAD_BLOCKS
    var q_$b_$h = Left();
    //$ if GUARDED
    loop {
        if (strip_$b >= STRIPS) { break; }
    //$ end
        q_$b_$h = coopLoadT<Left>(&sh_slab[strip_$b * SIDE * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
    //$ if GUARDED
        break;
    }
    //$ end
    //$ end
    //$ end
    //$ for v in 0..VALUE_BLOCKS
    var o_$b_$v = Sum();
    //$ end
    //$ end

    for (var j0 = start; j0 < end; j0 += TILE_K) {
        //$ for b in 0..OWN
        //$ for k in 0..KEY_BLOCKS
        var s_$b_$k = Sum();
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
                // Keys past the last one are never looked at; columns past the head dim are summed.
                let key = (thread + $nu * THREADS) / HEAD_CHUNKS;
                let chunk = (thread + $nu * THREADS) % HEAD_CHUNKS;
                let k = load_k(k_row(k_first, s, j0 + key), c0 + chunk);
                sh_slab[key * HEAD_STRIDE + chunk / 2u][chunk % 2u] = halves(within_head(c0 + chunk, k));
            }
            //$ end
            //$ if STREAMED
            for (var n = thread; n < TILE_Q * HEAD_CHUNKS; n += THREADS) {
                let chunk = n % HEAD_CHUNKS;
                let q = load_q(q_base + min(first + n / HEAD_CHUNKS, last) * aux.params.q.seq, c0 + chunk);
                sh_slab[(TILE_K + n / HEAD_CHUNKS) * HEAD_STRIDE + chunk / 2u][chunk % 2u] = halves(within_head(c0 + chunk, q));
            }
            //$ end
            //$ if EARLY
            stage_values(thread, s, v_first, item.split * VALUE_CHUNKS, j0, end);
            //$ end
            workgroupBarrier();   // the slab is whole
            //$ for n in LEAST..OWN+1
            //$ if GUARDED
            loop {
                if (count != $nu) { break; }
            //$ end
                //$ for h in 0..HEAD_BLOCKS
                {
                    //$ if STREAMED
                    //$ for b in 0..n
                    let q_$b_$h = coopLoadT<Left>(&sh_slab[(TILE_K + strip_$b * SIDE) * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
                    //$ end
                    //$ end
                    //$ for k in 0..KEY_BLOCKS
                    let k_$k = coopLoad<Right>(&sh_slab[$ku * SIDE * HEAD_STRIDE + $hu * SIDE / 8u][0][0], HEAD_STRIDE * 8u);
                    //$ for b in 0..n
                    s_$b_$k = coopMultiplyAdd(q_$b_$h, k_$k, s_$b_$k);
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
            coopStoreT(s_$b_$k, &sh_scores[strip_$b * SIDE * SCORE_STRIDE + $ku * SIDE / 4u][0], SCORE_STRIDE * 4u);
            //$ end
        //$ if GUARDED
            break;
        }
        //$ end
        //$ end
        workgroupBarrier();   // all scores have been written

        running = weigh(thread, row, tx, i, j0, lo, seen_keys, running);

        let risen = workgroupUniformLoad(&sh_risen);   // a barrier too: all weights have been written, the slab has been read
        //$ if LATE
        stage_values(thread, s, v_first, item.split * VALUE_CHUNKS, j0, end);
        workgroupBarrier();   // the values are there
        //$ end
        if (risen != 0u) {
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
                sh_scores[row * SCORE_STRIDE + c] = array<f32, 4>(x[0] * running.old, x[1] * running.old, x[2] * running.old, x[3] * running.old);
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
        //$ for n in LEAST..OWN+1
        //$ if GUARDED
        loop {
            if (count != $nu) { break; }
        //$ end
            //$ for k in 0..KEY_BLOCKS
            {
                //$ for b in 0..n
                let w_$b = coopLoadT<Left>(&sh_weights[strip_$b * SIDE * KEY_STRIDE + $ku * SIDE / 8u][0][0], KEY_STRIDE * 8u);
                //$ end
                //$ for v in 0..VALUE_BLOCKS
                let v_$v = coopLoad<Right>(&sh_slab[VALUES_AT + $vu * SIDE * KEY_STRIDE + $ku * SIDE / 8u][0][0], KEY_STRIDE * 8u);
                //$ for b in 0..n
                o_$b_$v = coopMultiplyAdd(w_$b, v_$v, o_$b_$v);
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

    let f = finish(running.m, row_sum(thread, vec4<f32>(running.l)).x, head);
    let stored = item.live & (first + row <= last);
    let out_row = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head + (s.q_start + i) * aux.params.out.seq;
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
        store_out(out_row, item.split * VALUE_CHUNKS + $gu * SIDE / 4u + c, vec4<f32>(x[0], x[1], x[2], x[3]) * f.scale);
    }
    //$ end
    if (stored & (tx == 0u) & (item.split == 0u)) {
        store_lse(s, head, i, f);
    }
}
