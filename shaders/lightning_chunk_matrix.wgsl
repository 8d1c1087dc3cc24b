// Linear attention with decay, chunk by chunk (Lightning attention, arXiv 2405.17381), on cooperative matrices.
//
//   S_t = exp(g_t) S_{t-1} + k_t v_t^T,  out_t = scale q_t S_t
//
// A workgroup owns EDGE columns of the value dim and walks a segment's tokens EDGE at a time. All that is multiplied are squares of EDGE
// rows and columns: tokens, columns, and rows of the state, a slab of the key dim at a time. Squares are of matrices of SIDE: a subgroup
// has one column of them and every `row_step`-th of its rows, OWN at most. Matrices have no elements, so what they give passes through
// workgroup memory in f32, to TX invocations a row with EACH vec4 each.
// The state is never less than f32: invocations hold it, transposed, and add what a chunk gives. What meets other factors in f16 is split
// in two halves (the state; values with their decay, whose product with the keys is what is added) or brought to f16's range row by row
// (scores with their decay). All decays are exp of sums <= 0, in f32.
// `loop { if (..) { break; } .. break; }` is an `if` on what only a subgroup agrees on: validation forbids matrices in one, not in a loop.

const STRIDE: u32 = EDGE / 8u + 1u;       // of rows of f16, in 16 bytes; one more than needed: neighbours fall into different banks
const SUM_STRIDE: u32 = EDGE / 4u + 1u;   // of rows of f32, likewise
const FOURS: u32 = EDGE / 4u;

// What matrices are loaded from and stored to, before all other, so that it begins at a multiple of 16 bytes.
//$ if OUT
var<workgroup> sh_rows: array<Half8, EDGE * STRIDE>;      // queries [token, row of the slab], then weights [query, key]
var<workgroup> sh_keys: array<Half8, EDGE * STRIDE>;      // [token, row of the slab]
var<workgroup> sh_values: array<Half8, EDGE * STRIDE>;    // [column, token]
var<workgroup> sh_state: array<array<Half8, EDGE * STRIDE>, 2>;      // high and low half [column, row of the slab]
//$ end
var<workgroup> sh_keys_by_row: array<Half8, EDGE * STRIDE>;          // [row of the slab, token]
var<workgroup> sh_decayed: array<array<Half8, EDGE * STRIDE>, 2>;    // high and low half of values [column, token]
//$ if OUT
var<workgroup> sh_scores: array<array<f32, 4>, EDGE * SUM_STRIDE>;   // [query, key], then what these give [query, column]
//$ end
var<workgroup> sh_sums: array<array<f32, 4>, EDGE * SUM_STRIDE>;     // what a chunk adds [column, row of the slab], then what the state
                                                                     // gives [query, column]
var<workgroup> sh_top_value: atomic<u32>;   // the largest value with its decay, as bits: those of positive numbers are in their order
//$ if OUT
var<workgroup> sh_top_state: atomic<u32>;
//$ end

fn clear_tops(thread: u32) {
    if (thread == 0u) {
        atomicStore(&sh_top_value, 0u);
        //$ if OUT
        atomicStore(&sh_top_state, 0u);
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
    let item = item_at(workgroup, grid);   // one that is not live walks no tokens and stores nothing: matrices forbid to return here
    let s = segment_at(item.segment);
    let tokens = select(0u, s.tokens, item.live);
    let head = item.head;
    begin_decay(head);
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ if OUT
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ end

    // A row of a square: of queries, or a column of the state.
    let row = thread / TX;
    let first = thread % TX * EACH;   // its first vec4 of this invocation
    let column = item.split * EDGE + row;
    // A block of four tokens by four columns or rows of the slab, for those that have one.
    let token = thread % FOURS * 4u;
    let chunk = thread / FOURS;
    // The matrices of this subgroup.
    let matrix_column = invocation.subgroup % GRID * SIDE;
    let row_step = subgroups / GRID * SIDE;
    //$ for b in 0..OWN
    let row_$b = invocation.subgroup / GRID * SIDE + $bu * row_step;
    //$ end

    //$ for n in 0..SLABS
    //$ for c in 0..EACH
    var state_$n_$c = vec4<f32>();
    //$ end
    //$ end
    if (s.state0 != NONE) {
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        state_$n_$c = load_state_rows(s, head, $nu * EDGE + (first + $cu) * 4u, column);
        //$ end
        //$ end
    }

    clear_tops(thread);
    workgroupBarrier();   // they are clear
    var decay = 0.0;   // log decay of the whole segment
    for (var t0 = 0u; t0 < tokens; t0 += EDGE) {
        let live = min(EDGE, tokens - t0);   // tokens of this chunk; what lies past them repeats the last one
        chunk_decay(s, head, thread, t0, live);
        let total = decay_total(live);
        decay += log_decay(total);
        let keep = exp(log_decay(total));

        //$ for k in 0..4
        var v_$k = vec4<f32>();
        var kept_$k = 0.0;   // what decay leaves of the token at the end of the chunk
        //$ end
        if (chunk < FOURS) {
            //$ for k in 0..4
            v_$k = load_v(v_base + token_at(s, t0 + min(token + $ku, live - 1u)) * aux.params.v.seq, item.split * FOURS + chunk);
            v_$k = within_value(item.split * FOURS + chunk, v_$k);
            kept_$k = select(0.0, exp(log_decay_between(decay_at(token + $ku, live), total)), token + $ku < live);
            //$ end
        }
        var top = 0.0;
        //$ for k in 0..4
        top = max(top, largest(v_$k) * kept_$k);
        //$ end
        top = subgroupMax(top);
        if (invocation.lane == 0u) {
            atomicMax(&sh_top_value, bitcast<u32>(top));
        }
        //$ if OUT
        top = 0.0;
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        top = max(top, largest(state_$n_$c));
        //$ end
        //$ end
        top = subgroupMax(top);
        if (invocation.lane == 0u) {
            atomicMax(&sh_top_state, bitcast<u32>(top));
        }
        //$ end
        workgroupBarrier();   // the largest are known; all that the previous chunk left has been read
        let values = reach(bitcast<f32>(atomicLoad(&sh_top_value)));
        let add = values.up * aux.params.write_scale;
        if (chunk < FOURS) {
            //$ for e in 0..4
            {
                let at = (chunk * 4u + $eu) * STRIDE + token / 8u;
                let x = vec4<f32>(v_0[$e], v_1[$e], v_2[$e], v_3[$e]);
                //$ if OUT
                sh_values[at][token / 4u % 2u] = halves(x);
                //$ end
                let decayed = split(x * vec4<f32>(kept_0, kept_1, kept_2, kept_3) * values.down);
                sh_decayed[0][at][token / 4u % 2u] = decayed.high;
                sh_decayed[1][at][token / 4u % 2u] = decayed.low;
            }
            //$ end
        }
        //$ if OUT
        let states = reach(bitcast<f32>(atomicLoad(&sh_top_state)));
        let q_row = q_base + token_at(s, t0 + min(row, live - 1u)) * aux.params.q.seq;
        //$ for b in 0..OWN
        var s_$b = Sum();
        var o_$b = Sum();
        //$ end
        //$ end

        //$ for n in 0..SLABS
        if (chunk < FOURS) {
            let slab = $nu * FOURS + chunk;
            //$ for k in 0..4
            let k_$k = within_head(slab, load_k(k_base + token_at(s, t0 + min(token + $ku, live - 1u)) * aux.params.k.seq, slab));
            //$ if OUT
            sh_keys[(token + $ku) * STRIDE + chunk / 2u][chunk % 2u] = halves(k_$k);
            //$ end
            //$ end
            //$ for e in 0..4
            sh_keys_by_row[(chunk * 4u + $eu) * STRIDE + token / 8u][token / 4u % 2u] = halves(vec4<f32>(k_0[$e], k_1[$e], k_2[$e], k_3[$e]));
            //$ end
        }
        //$ if OUT
        //$ for c in 0..EACH
        {
            let chunk = first + $cu;
            let q = within_head($nu * FOURS + chunk, load_q(q_row, $nu * FOURS + chunk));
            sh_rows[row * STRIDE + chunk / 2u][chunk % 2u] = halves(q);
            let state = split(state_$n_$c * states.down);
            sh_state[0][row * STRIDE + chunk / 2u][chunk % 2u] = state.high;
            sh_state[1][row * STRIDE + chunk / 2u][chunk % 2u] = state.low;
        }
        //$ end
        //$ end
        workgroupBarrier();   // the slab is whole; the largest have been read
        //$ for z in n..1
        clear_tops(thread);
        //$ end
        //$ for b in 0..OWN
        loop {
            if ((GUARDED == 1u) & (row_$b >= EDGE)) { break; }
            var added = Sum();
            //$ for d in 0..GRID
            {
                let at = row_$b * STRIDE + $du * SIDE / 8u;
                let across = matrix_column * STRIDE + $du * SIDE / 8u;
                //$ if OUT
                let q = coopLoadT<Left>(&sh_rows[at][0][0], STRIDE * 8u);
                s_$b = coopMultiplyAdd(q, coopLoad<Right>(&sh_keys[across][0][0], STRIDE * 8u), s_$b);
                o_$b = coopMultiplyAdd(q, coopLoad<Right>(&sh_state[0][across][0][0], STRIDE * 8u), o_$b);
                o_$b = coopMultiplyAdd(q, coopLoad<Right>(&sh_state[1][across][0][0], STRIDE * 8u), o_$b);
                //$ end
                let k = coopLoad<Right>(&sh_keys_by_row[across][0][0], STRIDE * 8u);
                added = coopMultiplyAdd(coopLoadT<Left>(&sh_decayed[0][at][0][0], STRIDE * 8u), k, added);
                added = coopMultiplyAdd(coopLoadT<Left>(&sh_decayed[1][at][0][0], STRIDE * 8u), k, added);
            }
            //$ end
            coopStoreT(added, &sh_sums[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            //$ if OUT
            //$ for z in LAST..n+1
            coopStoreT(s_$b, &sh_scores[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            //$ end
            //$ end
            break;
        }
        //$ end
        workgroupBarrier();   // what the chunk adds is there, with the last slab the scores too; the slab has been read
        //$ for c in 0..EACH
        {
            let x = sh_sums[row * SUM_STRIDE + first + $cu];
            state_$n_$c = state_$n_$c * keep + vec4<f32>(x[0], x[1], x[2], x[3]) * add;
        }
        //$ end
        //$ end

        //$ if OUT
        // Weights, of which a row sees those up to its own.
        let at = decay_at(row, live);
        top = 0.0;
        //$ for c in 0..EACH
        var w_$c = vec4<f32>();
        {
            let x = sh_scores[row * SUM_STRIDE + first + $cu];
            //$ for e in 0..4
            {
                let key = (first + $cu) * 4u + $eu;
                let w = x[$e] * aux.params.score_scale * exp(log_decay_between(decay_at(key, live), at));
                w_$c[$e] = select(0.0, w, (key <= row) & (key < live));
            }
            //$ end
            top = max(top, largest(w_$c));
        }
        //$ end
        let weights = reach(row_max(thread, vec4<f32>(top)).x);
        //$ for c in 0..EACH
        sh_rows[row * STRIDE + (first + $cu) / 2u][(first + $cu) % 2u] = halves(w_$c * weights.down);
        //$ end
        workgroupBarrier();   // the weights are there; the scores, and what the chunk adds, have been read
        //$ for b in 0..OWN
        loop {
            if ((GUARDED == 1u) & (row_$b >= EDGE)) { break; }
            var own = Sum();
            //$ for t in 0..GRID
            own = coopMultiplyAdd(
                coopLoadT<Left>(&sh_rows[row_$b * STRIDE + $tu * SIDE / 8u][0][0], STRIDE * 8u),
                coopLoad<Right>(&sh_values[matrix_column * STRIDE + $tu * SIDE / 8u][0][0], STRIDE * 8u),
                own,
            );
            //$ end
            coopStoreT(own, &sh_scores[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            coopStoreT(o_$b, &sh_sums[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            break;
        }
        //$ end
        workgroupBarrier();   // all sums are there
        let read = exp(log_decay(at)) * aux.params.read_scale * states.up;
        let out_row = out_base + token_at(s, t0 + row) * aux.params.out.seq;
        //$ for c in 0..EACH
        if (row < live) {
            let own = sh_scores[row * SUM_STRIDE + first + $cu];
            let old = sh_sums[row * SUM_STRIDE + first + $cu];
            let o = vec4<f32>(own[0], own[1], own[2], own[3]) * weights.up + vec4<f32>(old[0], old[1], old[2], old[3]) * read;
            store_out(out_row, item.split * FOURS + first + $cu, o);
        }
        //$ end
        //$ end
    }

    //$ if STATE
    if (item.live) {
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        store_state_rows(s, head, $nu * EDGE + (first + $cu) * 4u, column, state_$n_$c);
        //$ end
        //$ end
        //$ if TOTAL
        if ((thread == 0u) & (item.split == 0u)) {
            store_total(s, head, decay);
        }
        //$ end
    }
    //$ end
}
