// The linear attention of BASED (arXiv 2402.18668), chunk by chunk, on cooperative matrices.
//
//   out_t = sum_s w_ts v_s / (sum_s w_ts + eps),  w = 1 + x + x^2 / 2,  x = scale q_t . k_s
//
// The gradient of v is the same sum from the last token to the first, keys in the role of queries and queries in that of keys. What scales
// its values, gradients of outputs, goes to the other factor: they stay in f16.
//
// A workgroup owns EDGE columns of the value dim and walks a segment's tokens EDGE at a time. All that is multiplied are squares of EDGE
// rows and columns: tokens, columns, and rows of the packed state, a slab of them at a time. Squares are of matrices of SIDE: a subgroup
// has one column of them and every `row_step`-th of its rows, OWN at most. Matrices have no elements, so what they give passes through
// workgroup memory in f32, to TX invocations a row with EACH vec4 each.
// The state is never less than f32: invocations hold it, transposed, and add what a chunk gives. The state, and the products of keys, meet
// other factors as sums of two halves in f16; products of queries and weights are brought to f16's range row by row. Sums without values
// are taken by invocations, in f32.
// `loop { if (..) { break; } .. break; }` is an `if` on what only a subgroup agrees on: validation forbids matrices in one, not in a loop.

const STRIDE: u32 = EDGE / 8u + 1u;       // of rows of f16, in 16 bytes; one more than needed: neighbours fall into different banks
const SUM_STRIDE: u32 = EDGE / 4u + 1u;   // of rows of f32, likewise
const FOURS: u32 = EDGE / 4u;

// Queries and keys as factors of features: FEATURES of them, then 1 (0 of a token that is none), then 0.
const FEATURES: u32 = 16u;
const ONE: u32 = FEATURES;
const ZERO: u32 = FEATURES + 1u;
const UNITS: u32 = FEATURES + 2u;
const UNIT_STRIDE: u32 = FEATURES / 8u + 1u;

// What matrices are loaded from and stored to, before all other, so that it begins at a multiple of 16 bytes.
//$ if OUT
var<workgroup> sh_queries: array<Half8, EDGE * UNIT_STRIDE>;         // [token, unit]
var<workgroup> sh_rows: array<Half8, EDGE * STRIDE>;                 // features of queries [token, row of the slab], then weights [query, key]
var<workgroup> sh_state: array<array<Half8, EDGE * STRIDE>, 2>;      // high and low half [column, row of the slab]
//$ end
//$ if KEYS
var<workgroup> sh_keys: array<Half8, UNITS * STRIDE>;                // [unit, token]
var<workgroup> sh_values: array<Half8, EDGE * STRIDE>;               // [column, token]
var<workgroup> sh_keys_by_row: array<array<Half8, EDGE * STRIDE>, 2>;   // high and low half of features [row of the slab, token]
//$ end
//$ if SCORES
var<workgroup> sh_scores: array<array<f32, 4>, EDGE * SUM_STRIDE>;   // [query, key], then what these give [query, column]
//$ end
var<workgroup> sh_sums: array<array<f32, 4>, EDGE * SUM_STRIDE>;     // what a chunk adds [column, row of the slab], then what the state
                                                                     // gives [query, column]
var<workgroup> sh_features: array<Feature, SLABS * EDGE>;            // [row]
//$ if WEIGHTS
var<workgroup> sh_counts: array<f32, SLABS * EDGE>;                  // the state without values [row]
//$ end
//$ if SCALED
var<workgroup> sh_records: array<vec2<f32>, EDGE>;                   // [token]: the scale of its values, what it weighs
//$ end
//$ if KEYS
var<workgroup> sh_top_key: atomic<u32>;     // the largest product of two units, as bits: those of positive numbers are in their order
//$ end
//$ if OUT
var<workgroup> sh_top_state: atomic<u32>;   // likewise
//$ end

fn clear_tops(thread: u32) {
    if (thread == 0u) {
        //$ if KEYS
        atomicStore(&sh_top_key, 0u);
        //$ end
        //$ if OUT
        atomicStore(&sh_top_state, 0u);
        //$ end
    }
}

// A row of the state: the product of two units. Of that of a query's a share is read: its scale; a square once, other products for two.
struct Feature {
    i: u32,
    j: u32,
    share: f32,
}

fn feature_at(row: u32) -> Feature {
    let pair = pair_of(row);
    if (row >= aux.params.state_rows) {
        return Feature(ZERO, ZERO, 0.0);
    }
    let scale = aux.params.read_scale;
    if (pair.i > 0u) {
        return Feature(pair.i - 1u, pair.j - 1u, scale * scale * select(1.0, 0.5, pair.i == pair.j));
    }
    return Feature(ONE, select(pair.j - 1u, ONE, pair.j == 0u), select(scale, 1.0, pair.j == 0u));
}

// What a row of the packed state is, over its moment.
fn moment_share(row: u32) -> f32 {
    let f = sh_features[row];
    return select(1.0, SQUARE, (f.i == f.j) & (f.i < FEATURES));
}

fn moment_shares(row: u32) -> vec4<f32> {
    return vec4<f32>(moment_share(row), moment_share(row + 1u), moment_share(row + 2u), moment_share(row + 3u));
}

//$ if OUT
fn query_unit(token: u32, unit: u32) -> f32 {
    return f32(sh_queries[token * UNIT_STRIDE + unit / 8u][unit / 4u % 2u][unit % 4u]);
}

fn query_feature(token: u32, row: u32) -> f32 {
    let f = sh_features[row];
    return query_unit(token, f.i) * query_unit(token, f.j) * f.share;
}
//$ end

//$ if KEYS
// Four keys' products, which are added.
fn key_features(token: u32, row: u32) -> vec4<f32> {
    let f = sh_features[row];
    let scale = aux.params.write_scale;
    let share = select(1.0, scale, f.i < FEATURES) * select(1.0, scale, f.j < FEATURES);
    let a = whole(sh_keys[f.i * STRIDE + token / 8u][token / 4u % 2u]);
    return a * whole(sh_keys[f.j * STRIDE + token / 8u][token / 4u % 2u]) * share;
}
//$ end

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
    //$ if KEYS
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ end
    //$ if OUT
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    //$ end

    // A row of a square: of queries, or a column of the state.
    let row = thread / TX;
    let tx = thread % TX;
    let first = tx * EACH;   // its first vec4 of this invocation
    let column = item.split * EDGE + row;
    //$ if KEYS
    // A block of four tokens by four columns, for those that have one.
    let token = thread % FOURS * 4u;
    let chunk = thread / FOURS;
    //$ end
    // The matrices of this subgroup.
    let matrix_column = invocation.subgroup % GRID * SIDE;
    let row_step = subgroups / GRID * SIDE;
    //$ for b in 0..OWN
    let row_$b = invocation.subgroup / GRID * SIDE + $bu * row_step;
    //$ end

    for (var r = thread; r < SLABS * EDGE; r += THREADS) {
        sh_features[r] = feature_at(r);
        //$ if WEIGHTS
        var count = 0.0;
        if ((s.state0 != NONE) & (r < aux.params.state_rows)) {
            count = load_weight(s, head, r) / moment_share(r);
        }
        sh_counts[r] = count;
        //$ end
    }
    clear_tops(thread);
    workgroupBarrier();   // they are clear; all features are known
    //$ for n in 0..SLABS
    //$ for c in 0..EACH
    var state_$n_$c = vec4<f32>();
    //$ end
    //$ end
    if (s.state0 != NONE) {
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        {
            let r = $nu * EDGE + (first + $cu) * 4u;
            state_$n_$c = load_state_rows(s, head, r, column) / moment_shares(r);
        }
        //$ end
        //$ end
    }

    for (var t0 = 0u; t0 < tokens; t0 += EDGE) {
        let live = min(EDGE, tokens - t0);   // tokens of this chunk; what lies past them repeats the last one
        var top = 0.0;
        //$ if KEYS
        let keys = min(live, added_tokens(s) - min(t0, added_tokens(s)));   // those that are keys; what is none may hold anything
        let row_token = token_at(s, t0 + min(row, live - 1u));
        let k_row = k_base + row_token * aux.params.k.seq;
        for (var c = tx; c < FEATURES / 4u; c += TX) {
            let k = select(vec4<f32>(), within_head(c, load_k(k_row, c)), row < keys);
            top = max(top, largest(k));
            //$ for e in 0..4
            sh_keys[(c * 4u + $eu) * STRIDE + row / 8u][row / 4u % 2u][row % 4u] = f16(k[$e]);
            //$ end
        }
        top = max(row_max(thread, vec4<f32>(top)).x * abs(aux.params.write_scale), 1.0);
        top *= top;
        //$ if SCALED
        let values = vec2<f32>(value_scale(s, head, row_token), value_weight(s, head, row_token));
        top *= values.x;
        //$ end
        if (tx == 0u) {
            sh_keys[ONE * STRIDE + row / 8u][row / 4u % 2u][row % 4u] = f16(select(0.0, 1.0, row < keys));
            sh_keys[ZERO * STRIDE + row / 8u][row / 4u % 2u][row % 4u] = f16(0.0);
            //$ if SCALED
            sh_records[row] = values;
            //$ end
        }
        top = subgroupMax(top);
        if (invocation.lane == 0u) {
            atomicMax(&sh_top_key, bitcast<u32>(top));
        }
        if (chunk < FOURS) {
            //$ for k in 0..4
            var v_$k = vec4<f32>();
            if (token + $ku < keys) {
                v_$k = load_v(v_base + token_at(s, t0 + token + $ku) * aux.params.v.seq, item.split * FOURS + chunk);
                v_$k = within_value(item.split * FOURS + chunk, v_$k);
            }
            //$ end
            //$ for e in 0..4
            sh_values[(chunk * 4u + $eu) * STRIDE + token / 8u][token / 4u % 2u] = halves(vec4<f32>(v_0[$e], v_1[$e], v_2[$e], v_3[$e]));
            //$ end
        }
        //$ end
        //$ if OUT
        let q_row = q_base + token_at(s, t0 + min(row, live - 1u)) * aux.params.q.seq;
        top = 0.0;
        for (var c = tx; c < FEATURES / 4u; c += TX) {
            let q = within_head(c, load_q(q_row, c));
            top = max(top, largest(q));
            sh_queries[row * UNIT_STRIDE + c / 2u][c % 2u] = halves(q);
        }
        if (tx == 0u) {
            sh_queries[row * UNIT_STRIDE + FEATURES / 8u][0] = halves(vec4<f32>(1.0, 0.0, 0.0, 0.0));
        }
        let top_unit = max(row_max(thread, vec4<f32>(top)).x * abs(aux.params.read_scale), 1.0);
        let queries = reach(top_unit * top_unit);
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
        workgroupBarrier();   // all units, all values and the largest are there; all that the previous chunk left has been read
        //$ if KEYS
        let products = reach(bitcast<f32>(atomicLoad(&sh_top_key)));
        //$ end
        //$ if OUT
        let states = reach(bitcast<f32>(atomicLoad(&sh_top_state)));
        var total = 0.0;   // of a query's weights, of this invocation's rows or keys alone
        //$ for b in 0..OWN
        var o_$b = Sum();
        //$ end
        //$ end

        //$ for n in 0..SLABS
        //$ if COUNTED
        var counted_$n = 0.0;
        //$ end
        //$ for c in 0..EACH
        {
            let chunk = first + $cu;
            //$ if KEYS
            var features = key_features(chunk * 4u, $nu * EDGE + row);
            //$ if SCALED
            //$ for e in 0..4
            let record_$e = sh_records[chunk * 4u + $eu];
            //$ end
            let counts = vec4<f32>(record_0.y, record_1.y, record_2.y, record_3.y);
            //$ end
            //$ if PLAIN
            let counts = vec4<f32>(1.0);
            //$ end
            //$ if COUNTED
            counted_$n += dot(features, counts);
            //$ end
            //$ if SCALED
            features *= vec4<f32>(record_0.x, record_1.x, record_2.x, record_3.x);
            //$ end
            let product = split(features * products.down);
            sh_keys_by_row[0][row * STRIDE + chunk / 2u][chunk % 2u] = product.high;
            sh_keys_by_row[1][row * STRIDE + chunk / 2u][chunk % 2u] = product.low;
            //$ end
            //$ if OUT
            let at = $nu * EDGE + chunk * 4u;
            let q = vec4<f32>(query_feature(row, at), query_feature(row, at + 1u), query_feature(row, at + 2u), query_feature(row, at + 3u));
            sh_rows[row * STRIDE + chunk / 2u][chunk % 2u] = halves(q * queries.down);
            //$ if WEIGHTS
            total += dot(q, vec4<f32>(sh_counts[at], sh_counts[at + 1u], sh_counts[at + 2u], sh_counts[at + 3u]));
            //$ end
            let state = split(state_$n_$c * states.down);
            sh_state[0][row * STRIDE + chunk / 2u][chunk % 2u] = state.high;
            sh_state[1][row * STRIDE + chunk / 2u][chunk % 2u] = state.low;
            //$ end
        }
        //$ end
        workgroupBarrier();   // the slab is whole; the largest, and its counts, have been read
        //$ for z in n..1
        clear_tops(thread);
        //$ end
        //$ if COUNTED
        counted_$n = row_sum(thread, vec4<f32>(counted_$n)).x;
        if (tx == 0u) {
            sh_counts[$nu * EDGE + row] += counted_$n;
        }
        //$ end
        //$ for b in 0..OWN
        loop {
            if ((GUARDED == 1u) & (row_$b >= EDGE)) { break; }
            //$ if KEYS
            var added = Sum();
            //$ end
            //$ for d in 0..GRID
            {
                let at = row_$b * STRIDE + $du * SIDE / 8u;
                let across = matrix_column * STRIDE + $du * SIDE / 8u;
                //$ if OUT
                let q = coopLoadT<Left>(&sh_rows[at][0][0], STRIDE * 8u);
                o_$b = coopMultiplyAdd(q, coopLoad<Right>(&sh_state[0][across][0][0], STRIDE * 8u), o_$b);
                o_$b = coopMultiplyAdd(q, coopLoad<Right>(&sh_state[1][across][0][0], STRIDE * 8u), o_$b);
                //$ end
                //$ if KEYS
                let v = coopLoadT<Left>(&sh_values[at][0][0], STRIDE * 8u);
                added = coopMultiplyAdd(v, coopLoad<Right>(&sh_keys_by_row[0][across][0][0], STRIDE * 8u), added);
                added = coopMultiplyAdd(v, coopLoad<Right>(&sh_keys_by_row[1][across][0][0], STRIDE * 8u), added);
                //$ end
            }
            //$ end
            //$ if KEYS
            coopStoreT(added, &sh_sums[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            //$ end
            //$ if SCORES
            //$ for z in LAST..n+1
            var scores = Sum();
            //$ for d in 0..UNIT_BLOCKS
            scores = coopMultiplyAdd(
                coopLoadT<Left>(&sh_queries[row_$b * UNIT_STRIDE + $du * SIDE / 8u][0][0], UNIT_STRIDE * 8u),
                coopLoadT<Right>(&sh_keys[$du * SIDE * STRIDE + matrix_column / 8u][0][0], STRIDE * 8u),
                scores,
            );
            //$ end
            coopStoreT(scores, &sh_scores[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            //$ end
            //$ end
            break;
        }
        //$ end
        workgroupBarrier();   // what the chunk adds is there, with the last slab the scores too; the slab has been read
        //$ if KEYS
        //$ for c in 0..EACH
        {
            let x = sh_sums[row * SUM_STRIDE + first + $cu];
            state_$n_$c += vec4<f32>(x[0], x[1], x[2], x[3]) * products.up;
        }
        //$ end
        //$ end
        //$ end

        //$ if SCORES
        // Weights, of which a row sees those up to its own.
        top = 0.0;
        //$ for c in 0..EACH
        var w_$c = vec4<f32>();
        {
            let dots = sh_scores[row * SUM_STRIDE + first + $cu];
            //$ for e in 0..4
            {
                let key = (first + $cu) * 4u + $eu;
                let x = dots[$e] * aux.params.score_scale;
                var w = 1.0 + x + 0.5 * x * x;
                //$ if SCALED
                w *= sh_records[key].x;
                //$ end
                w_$c[$e] = select(0.0, w, (key <= row) & (key < keys));
            }
            //$ end
            total += dot(w_$c, vec4<f32>(1.0));
            top = max(top, largest(w_$c));
        }
        //$ end
        let weights = reach(row_max(thread, vec4<f32>(top)).x);
        //$ for c in 0..EACH
        sh_rows[row * STRIDE + (first + $cu) / 2u][(first + $cu) % 2u] = halves(w_$c * weights.down);
        //$ end
        workgroupBarrier();   // the weights are there; the scores, and what the chunk adds, have been read
        //$ end
        //$ if OUT
        //$ for b in 0..OWN
        loop {
            if ((GUARDED == 1u) & (row_$b >= EDGE)) { break; }
            //$ if SCORES
            var own = Sum();
            //$ for t in 0..GRID
            own = coopMultiplyAdd(
                coopLoadT<Left>(&sh_rows[row_$b * STRIDE + $tu * SIDE / 8u][0][0], STRIDE * 8u),
                coopLoad<Right>(&sh_values[matrix_column * STRIDE + $tu * SIDE / 8u][0][0], STRIDE * 8u),
                own,
            );
            //$ end
            coopStoreT(own, &sh_scores[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            //$ end
            coopStoreT(o_$b, &sh_sums[row_$b * SUM_STRIDE + matrix_column / 4u][0], SUM_STRIDE * 4u);
            break;
        }
        //$ end
        workgroupBarrier();   // all sums are there
        //$ if WEIGHTS
        let scale = finish(row_sum(thread, vec4<f32>(total)).x);
        //$ end
        //$ if RAW
        let scale = 1.0;
        //$ end
        let out_row = out_base + token_at(s, t0 + row) * aux.params.out.seq;
        //$ for c in 0..EACH
        if (row < live) {
            let old = sh_sums[row * SUM_STRIDE + first + $cu];
            var o = vec4<f32>(old[0], old[1], old[2], old[3]) * (queries.up * states.up);
            //$ if SCORES
            let own = sh_scores[row * SUM_STRIDE + first + $cu];
            o += vec4<f32>(own[0], own[1], own[2], own[3]) * weights.up;
            //$ end
            store_out(out_row, item.split * FOURS + first + $cu, select(vec4<f32>(), o * scale, is_row(s, t0 + row)));
        }
        //$ end
        //$ end
    }

    //$ if STATE
    workgroupBarrier();   // all counts are whole
    if (item.live & (s.state != NONE)) {
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        {
            let r = $nu * EDGE + (first + $cu) * 4u;
            store_state_rows(s, head, r, column, state_$n_$c * moment_shares(r));
        }
        //$ end
        //$ end
        for (var r = thread; (r < aux.params.state_rows) & (item.split == 0u); r += THREADS) {
            store_weight(s, head, r, sh_counts[r] * moment_share(r));
        }
    }
    //$ end
}
