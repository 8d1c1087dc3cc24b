// The gradients of q and k of BASED's linear attention, chunk by chunk, on cooperative matrices.
//
//   dq_t = scale sum_s g_ts (1 + x_ts) k_s,  dk_s = scale sum_t g_ts (1 + x_ts) q_t,  g_ts = dout_t . v_s / n_t + dn_t
//
// What the keys before a chunk give comes from their moments M_ij, as in based_gradient: dq_i = scale sum_j u_j (dout . M_ij / n + dn m_ij).
// Those of the chunk meet its queries one by one. Here `q` are the rows that gradients come out for, `g` what meets the values.
//
// A workgroup walks a segment with EDGE columns of the value dim, from aux.params.block on, EDGE tokens at a time; further columns are
// further passes, whose sums lie in the records. Squares and matrices are as in based_chunk_matrix; where there are two teams of subgroups,
// one reads the state while the other adds to it. What passes through workgroup memory goes to all invocations, TX a row with EACH vec4 each.
// Rows of the state come in fours, u_i times four u_j: the products of all i with all fours from that of i on, so that some lie in it twice.
// The state is never less than f32: invocations hold it, transposed, and add what a chunk gives. The state, the products of keys, and what
// the keys of a chunk are summed with, meet other factors as sums of two halves in f16; q, k, v and g are in f16 to begin with.
// Matrices are multiplied in functions: naga counts the turns of every loop, and the counts of those in `main` would all be alive at once.

const STRIDE: u32 = EDGE / 8u + 1u;       // of rows of f16, in 16 bytes; one more than needed: neighbours fall into different banks
const SUM_STRIDE: u32 = EDGE / 4u + 1u;   // of rows of f32, likewise
const FOURS: u32 = EDGE / 4u;

// Units of queries and keys: FEATURES of them, then a four of 1 (0 of a token that is none) and zeros.
const FEATURES: u32 = 16u;
const ONE: u32 = FEATURES;
const ZERO: u32 = FEATURES + 1u;
const ONE_FOUR: u32 = ONE / 4u;
const UNITS: u32 = FEATURES + 4u;
const UNIT_STRIDE: u32 = FEATURES / 8u + 1u;

// What matrices are loaded from and stored to, before all other, so that it begins at a multiple of 16 bytes.
var<workgroup> sh_queries: array<Half8, EDGE * UNIT_STRIDE>;                   // [token, unit]
var<workgroup> sh_g: array<Half8, EDGE * STRIDE>;                              // [token, column]
var<workgroup> sh_state: array<array<Half8, EDGE * STRIDE>, 2>;                // high and low half [column, row of the slab], then what
                                                                               // keys are summed with [query, key]
//$ if KEYS
var<workgroup> sh_keys: array<Half8, UNITS * STRIDE>;                          // [unit, token]
var<workgroup> sh_values: array<Half8, EDGE * STRIDE>;                         // [column, token]
var<workgroup> sh_keys_by_row: array<array<Half8, EDGE * STRIDE>, 2>;          // high and low half of features [row of the slab, token]
//$ end
var<workgroup> sh_sums: array<array<array<f32, 4>, EDGE * SUM_STRIDE>, SUMS>;  // g . v and q . k [query, key]; g . M [query, row of the
                                                                               // slab] and what the chunk adds [column, row of the
                                                                               // slab]; sums over its keys [query, unit]
var<workgroup> sh_fours: array<Four, SLABS * FOURS>;
//$ if COUNTED
var<workgroup> sh_counts: array<array<f32, 4>, SLABS * FOURS>;                 // the state without values, by fours of rows
//$ end
//$ if SCALED
var<workgroup> sh_records: array<vec2<f32>, EDGE>;                             // [token]: the scale of its values, what it weighs
//$ end
//$ if KEYS
var<workgroup> sh_top_key: atomic<u32>;     // the largest product of two units, as bits: those of positive numbers are in their order
//$ end
var<workgroup> sh_top_state: atomic<u32>;   // likewise

fn clear_tops(thread: u32) {
    if (thread == 0u) {
        //$ if KEYS
        atomicStore(&sh_top_key, 0u);
        //$ end
        atomicStore(&sh_top_state, 0u);
    }
}

// Four rows of the state: unit i times the units from 4 * four on.
struct Four {
    i: u32,
    four: u32,
    scale: f32,   // of the products of keys
}

fn four_at(index: u32) -> Four {
    let scale = aux.params.write_scale;
    if (index <= FEATURE_FOURS) {
        return Four(ONE, select(index - 1u, ONE_FOUR, index == 0u), select(scale, 1.0, index == 0u));
    }
    var i = 0u;
    var rest = index - FEATURE_FOURS - 1u;
    while ((i < 4u * FEATURE_FOURS) & (rest >= FEATURE_FOURS - i / 4u)) {
        rest -= FEATURE_FOURS - i / 4u;
        i += 1u;
    }
    if (i == 4u * FEATURE_FOURS) {
        return Four(ZERO, ONE_FOUR, 0.0);
    }
    return Four(i, i / 4u + rest, scale * scale);
}

// The moment of two units in a column of the state that a segment starts from, the last of which are weights.
fn load_moment(s: Segment, head: u32, i: u32, j: u32, column: u32) -> f32 {
    let dim = aux.params.head_dim;
    if (((i != ONE) & (i >= dim)) | ((j != ONE) & (j >= dim))) {
        return 0.0;
    }
    let a = select(i + 1u, 0u, i == ONE);
    let b = select(j + 1u, 0u, j == ONE);
    return load_number(s, head, feature_row(min(a, b), max(a, b)), column) / select(1.0, SQUARE, (a == b) & (a > 0u));
}

fn load_moments(s: Segment, head: u32, four: Four, column: u32) -> vec4<f32> {
    if ((s.state0 == NONE) | (column > aux.params.value_dim)) {
        return vec4<f32>();
    }
    let j = 4u * four.four;
    return vec4<f32>(
        load_moment(s, head, four.i, j, column),
        load_moment(s, head, four.i, j + 1u, column),
        load_moment(s, head, four.i, j + 2u, column),
        load_moment(s, head, four.i, j + 3u, column),
    );
}

fn query_four(token: u32, four: u32) -> vec4<f32> {
    let x = whole(sh_queries[token * UNIT_STRIDE + four / 2u][four % 2u]);
    return x * select(aux.params.read_scale, 1.0, four == ONE_FOUR);
}

fn query_unit(token: u32, unit: u32) -> f32 {
    let x = f32(sh_queries[token * UNIT_STRIDE + unit / 8u][unit / 4u % 2u][unit % 4u]);
    return x * select(aux.params.read_scale, 1.0, unit >= ONE);
}

//$ if KEYS
// Four keys' products in a row of the state.
fn key_features(token: u32, row: u32) -> vec4<f32> {
    let f = sh_fours[row / 4u];
    let j = 4u * f.four + row % 4u;
    let a = whole(sh_keys[f.i * STRIDE + token / 8u][token / 4u % 2u]);
    return a * whole(sh_keys[j * STRIDE + token / 8u][token / 4u % 2u]) * f.scale;
}
//$ end

// The matrices of a subgroup: of the square that its team multiplies those of one column, from a row on.
struct Matrices {
    team: u32,
    column: u32,
    row: u32,
    step: u32,
}

fn matrices_of(invocation: Invocation, subgroups: u32) -> Matrices {
    let members = max(subgroups / TEAMS, 1u);
    let member = invocation.subgroup % members;
    return Matrices(invocation.subgroup / members, member % GRID * SIDE, member / GRID * SIDE, max(members / GRID, 1u) * SIDE);
}

// g . M in a slab, by the first team.
fn meet_state(own: Matrices) {
    for (var row = own.row; (row < EDGE) & (own.team == 0u); row += own.step) {
        var sum = Sum();
        //$ for d in 0..GRID
        {
            let g = coopLoadT<Left>(&sh_g[row * STRIDE + $du * SIDE / 8u][0][0], STRIDE * 8u);
            let across = $du * SIDE * STRIDE + own.column / 8u;
            sum = coopMultiplyAdd(g, coopLoadT<Right>(&sh_state[0][across][0][0], STRIDE * 8u), sum);
            sum = coopMultiplyAdd(g, coopLoadT<Right>(&sh_state[1][across][0][0], STRIDE * 8u), sum);
        }
        //$ end
        coopStoreT(sum, &sh_sums[0][row * SUM_STRIDE + own.column / 4u][0], SUM_STRIDE * 4u);
    }
}

//$ if KEYS
// What the chunk adds to a slab, by the last team.
fn add_values(own: Matrices) {
    for (var row = own.row; (row < EDGE) & (own.team == TEAMS - 1u); row += own.step) {
        var sum = Sum();
        //$ for d in 0..GRID
        {
            let v = coopLoadT<Left>(&sh_values[row * STRIDE + $du * SIDE / 8u][0][0], STRIDE * 8u);
            let across = own.column * STRIDE + $du * SIDE / 8u;
            sum = coopMultiplyAdd(v, coopLoad<Right>(&sh_keys_by_row[0][across][0][0], STRIDE * 8u), sum);
            sum = coopMultiplyAdd(v, coopLoad<Right>(&sh_keys_by_row[1][across][0][0], STRIDE * 8u), sum);
        }
        //$ end
        coopStoreT(sum, &sh_sums[1][row * SUM_STRIDE + own.column / 4u][0], SUM_STRIDE * 4u);
    }
}

// g . v by the first team, q . k by the last.
fn meet_keys(own: Matrices) {
    for (var row = own.row; (row < EDGE) & (own.team == 0u); row += own.step) {
        var sum = Sum();
        //$ for d in 0..GRID
        sum = coopMultiplyAdd(
            coopLoadT<Left>(&sh_g[row * STRIDE + $du * SIDE / 8u][0][0], STRIDE * 8u),
            coopLoadT<Right>(&sh_values[$du * SIDE * STRIDE + own.column / 8u][0][0], STRIDE * 8u),
            sum,
        );
        //$ end
        coopStoreT(sum, &sh_sums[0][row * SUM_STRIDE + own.column / 4u][0], SUM_STRIDE * 4u);
    }
    for (var row = own.row; (row < EDGE) & (own.team == TEAMS - 1u); row += own.step) {
        var sum = Sum();
        //$ for d in 0..UNIT_BLOCKS
        sum = coopMultiplyAdd(
            coopLoadT<Left>(&sh_queries[row * UNIT_STRIDE + $du * SIDE / 8u][0][0], UNIT_STRIDE * 8u),
            coopLoadT<Right>(&sh_keys[$du * SIDE * STRIDE + own.column / 8u][0][0], STRIDE * 8u),
            sum,
        );
        //$ end
        coopStoreT(sum, &sh_sums[1][row * SUM_STRIDE + own.column / 4u][0], SUM_STRIDE * 4u);
    }
}

// Sums over the keys of the chunk, by the first team.
fn sum_keys(own: Matrices) {
    for (var row = own.row; (row < EDGE) & (own.team == 0u) & (own.column < FEATURES); row += own.step) {
        var sum = Sum();
        //$ for t in 0..GRID
        {
            let at = row * STRIDE + $tu * SIDE / 8u;
            let k = coopLoad<Right>(&sh_keys[own.column * STRIDE + $tu * SIDE / 8u][0][0], STRIDE * 8u);
            sum = coopMultiplyAdd(coopLoadT<Left>(&sh_state[0][at][0][0], STRIDE * 8u), k, sum);
            sum = coopMultiplyAdd(coopLoadT<Left>(&sh_state[1][at][0][0], STRIDE * 8u), k, sum);
        }
        //$ end
        coopStoreT(sum, &sh_sums[0][row * SUM_STRIDE + own.column / 4u][0], SUM_STRIDE * 4u);
    }
}
//$ end

// Sums over the moments before a chunk, of an invocation's fours of units: every TX-th from `tx` on. Where there are more invocations than
// fours, several share them, and have every SHARERS-th four of the state each.
struct Met {
    //$ for h in 0..EACH_FOURS
    p_$h: vec4<f32>,
    //$ if WEIGHTS
    z_$h: vec4<f32>,   // without values
    //$ end
    //$ end
    //$ if WEIGHTS
    sums: vec2<f32>,   // of weights times g . v, and of weights
    //$ end
}

fn meet_units(before: Met, slab: u32, row: u32, tx: u32, up: f32, last: bool) -> Met {
    var met = before;
    for (var f = tx / FEATURE_FOURS; f < FOURS; f += SHARERS) {
        let four = sh_fours[slab * FOURS + f];
        let sum = sh_sums[0][row * SUM_STRIDE + f];
        var y = vec4<f32>(sum[0], sum[1], sum[2], sum[3]) * up;
        //$ if COUNTED
        let counts = sh_counts[slab * FOURS + f];
        let m = vec4<f32>(counts[0], counts[1], counts[2], counts[3]);
        //$ end
        //$ if REVERSED
        // Values weigh 1 where rows are keys; what weighs where they are queries is not known before their sums are.
        y += select(vec4<f32>(), m, last);
        //$ end
        let u = query_unit(row, four.i);
        let others = query_four(row, four.four);
        let twice = four.i / 4u == four.four;   // each product of the four lies in the state for either unit
        let along = dot(others, y);
        //$ if WEIGHTS
        let along_count = dot(others, m);
        let share = u * select(1.0, 0.5, twice & (four.i < ONE));
        met.sums += select(vec2<f32>(), vec2<f32>(along, along_count) * share, tx % FEATURE_FOURS == 0u);
        //$ end
        //$ for h in 0..EACH_FOURS
        {
            let own = tx % FEATURE_FOURS + $hu * TX;
            let across = select(0.0, u, (four.four == own) & !twice);
            let here = vec4<f32>(4u * own + vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(four.i));
            met.p_$h += across * y + along * here;
            //$ if WEIGHTS
            met.z_$h += across * m + along_count * here;
            //$ end
        }
        //$ end
    }
    return met;
}

// What invocations of a row that share fours of units have summed together.
fn sharers_sum(x: vec4<f32>) -> vec4<f32> {
    var all = x;
    //$ for n in FOURS_LOG2..TX_LOG2
    all += subgroupShuffleXor(all, 1u << $nu);
    //$ end
    return all;
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
    let item = item_at(workgroup, grid);   // one that is not live walks no tokens: matrices forbid to return here
    let s = segment_at(item.segment);
    let tokens = select(0u, s.tokens, item.live);
    let head = item.head;
    let block = aux.params.block;
    let last = block + FOURS >= aux.params.value_chunks;   // pass
    //$ if KEYS
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ end
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let g_base = aux.params.g.offset + s.batch * aux.params.g.batch + head * aux.params.g.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;

    // A row of a square: of queries, or a column of the state.
    let row = thread / TX;
    let tx = thread % TX;
    let first = tx * EACH;   // its first vec4 of this invocation
    //$ if KEYS
    // A block of four tokens by four columns, for those that have one.
    let token = thread % FOURS * 4u;
    let chunk = thread / FOURS;
    //$ end
    let matrices = matrices_of(invocation, subgroups);

    for (var f = thread; f < SLABS * FOURS; f += THREADS) {
        let four = four_at(f);
        sh_fours[f] = four;
        //$ if COUNTED
        let count = load_moments(s, head, four, aux.params.value_dim);
        sh_counts[f] = array<f32, 4>(count.x, count.y, count.z, count.w);
        //$ end
    }
    clear_tops(thread);
    workgroupBarrier();   // they are clear; all fours are known
    //$ for n in 0..SLABS
    //$ for c in 0..EACH
    var state_$n_$c = vec4<f32>();
    //$ end
    //$ end
    let column = 4u * block + row;
    if ((s.state0 != NONE) & (column < aux.params.value_dim)) {
        // Registers have no index: they are loaded by selection, since drivers compile one load fast and many slowly.
        for (var f = 0u; f < SLABS * EACH; f++) {
            let x = load_moments(s, head, sh_fours[f / EACH * FOURS + first + f % EACH], column);
            //$ for n in 0..SLABS
            //$ for c in 0..EACH
            state_$n_$c = select(state_$n_$c, x, f == $nu * EACH + $cu);
            //$ end
            //$ end
        }
    }

    for (var t0 = 0u; t0 < tokens; t0 += EDGE) {
        let live = min(EDGE, tokens - t0);   // tokens of this chunk; what lies past them repeats the last one
        let row_token = token_at(s, t0 + min(row, live - 1u));
        var top = 0.0;
        //$ if KEYS
        let keys = min(live, added_tokens(s) - min(t0, added_tokens(s)));   // those that are keys; what is none may hold anything
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
            //$ for e in 1..4
            sh_keys[(ONE + $eu) * STRIDE + row / 8u][row / 4u % 2u][row % 4u] = f16(0.0);
            //$ end
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
                v_$k = load_v(v_base + token_at(s, t0 + token + $ku) * aux.params.v.seq, block + chunk);
                v_$k = within_value(block + chunk, v_$k);
            }
            //$ end
            //$ for e in 0..4
            sh_values[(chunk * 4u + $eu) * STRIDE + token / 8u][token / 4u % 2u] = halves(vec4<f32>(v_0[$e], v_1[$e], v_2[$e], v_3[$e]));
            //$ end
        }
        //$ end
        let q_row = q_base + row_token * aux.params.q.seq;
        for (var c = tx; c < FEATURES / 4u; c += TX) {
            sh_queries[row * UNIT_STRIDE + c / 2u][c % 2u] = halves(within_head(c, load_q(q_row, c)));
        }
        if (tx == 0u) {
            sh_queries[row * UNIT_STRIDE + ONE_FOUR / 2u][ONE_FOUR % 2u] = halves(vec4<f32>(1.0, 0.0, 0.0, 0.0));
        }
        let g_row = g_base + row_token * aux.params.g.seq;
        top = 0.0;
        //$ for c in 0..EACH
        {
            let chunk = first + $cu;
            sh_g[row * STRIDE + chunk / 2u][chunk % 2u] = halves(within_value(block + chunk, load_g(g_row, block + chunk)));
        }
        //$ end
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        top = max(top, largest(state_$n_$c));
        //$ end
        //$ end
        top = subgroupMax(top);
        if (invocation.lane == 0u) {
            atomicMax(&sh_top_state, bitcast<u32>(top));
        }
        workgroupBarrier();   // all of the chunk, and the largest, are there; all sums of the chunk before have been read
        //$ if KEYS
        let products = reach(bitcast<f32>(atomicLoad(&sh_top_key)));
        //$ end
        let states = reach(bitcast<f32>(atomicLoad(&sh_top_state)));
        //$ if WEIGHTS
        var sums = vec2<f32>();   // of a query's weights times g . v, and of its weights, of this invocation's rows or keys alone
        //$ end

        //$ if KEYS
        meet_keys(matrices);
        workgroupBarrier();   // both products are there; the largest have been read
        clear_tops(thread);
        // Keys of the chunk, of which a row sees those up to its own: what they are summed with.
        //$ for c in 0..EACH
        var own_$c = vec4<f32>();
        //$ if WEIGHTS
        var own_count_$c = vec4<f32>();
        //$ end
        {
            let meets = sh_sums[0][row * SUM_STRIDE + first + $cu];
            let dots = sh_sums[1][row * SUM_STRIDE + first + $cu];
            //$ for e in 0..4
            {
                let key = (first + $cu) * 4u + $eu;
                let x = dots[$e] * aux.params.score_scale;
                if ((key <= row) & (key < keys)) {
                    //$ if FORWARD
                    let g = meets[$e];
                    //$ end
                    //$ if SCALED
                    let g = meets[$e] * sh_records[key].x + select(0.0, sh_records[key].y, last);
                    //$ end
                    own_$c[$e] = g * (1.0 + x);
                    //$ if WEIGHTS
                    own_count_$c[$e] = 1.0 + x;
                    sums += vec2<f32>(g, 1.0) * (1.0 + x + 0.5 * x * x);
                    //$ end
                }
            }
            //$ end
        }
        //$ end
        //$ end

        var met = Met();
        //$ if ADDED_COUNTS
        //$ for n in 0..SLABS
        var counted_$n = 0.0;
        //$ end
        //$ end
        //$ for n in 0..SLABS
        //$ for c in 0..EACH
        {
            let chunk = first + $cu;
            let state = split(state_$n_$c * states.down);
            sh_state[0][row * STRIDE + chunk / 2u][chunk % 2u] = state.high;
            sh_state[1][row * STRIDE + chunk / 2u][chunk % 2u] = state.low;
        }
        //$ end
        //$ if KEYS
        //$ for c in 0..EACH
        {
            let chunk = first + $cu;
            var features = key_features(chunk * 4u, $nu * EDGE + row);
            //$ if SCALED
            //$ for e in 0..4
            let record_$e = sh_records[chunk * 4u + $eu];
            //$ end
            counted_$n += dot(features, vec4<f32>(record_0.y, record_1.y, record_2.y, record_3.y));
            features *= vec4<f32>(record_0.x, record_1.x, record_2.x, record_3.x);
            //$ end
            //$ if WEIGHTS
            counted_$n += dot(features, vec4<f32>(1.0));
            //$ end
            let product = split(features * products.down);
            sh_keys_by_row[0][row * STRIDE + chunk / 2u][chunk % 2u] = product.high;
            sh_keys_by_row[1][row * STRIDE + chunk / 2u][chunk % 2u] = product.low;
        }
        //$ end
        //$ end
        workgroupBarrier();   // the slab is whole; all sums have been read
        meet_state(matrices);
        //$ if KEYS
        add_values(matrices);
        //$ end
        workgroupBarrier();   // what the state gives, and what the chunk adds, is there; the slab has been read
        met = meet_units(met, $nu, row, tx, states.up, last);
        //$ if KEYS
        //$ for c in 0..EACH
        {
            let x = sh_sums[1][row * SUM_STRIDE + first + $cu];
            state_$n_$c += vec4<f32>(x[0], x[1], x[2], x[3]) * products.up;
        }
        //$ end
        //$ end
        //$ end

        //$ for h in 0..EACH_FOURS
        let p_$h = sharers_sum(met.p_$h);
        //$ if WEIGHTS
        let z_$h = sharers_sum(met.z_$h);
        //$ end
        //$ end
        //$ if WEIGHTS
        sums += met.sums;
        //$ end
        var inverse = 1.0;   // over the denominator, and its gradient
        var dn = 0.0;
        //$ if HAS_RECORDS
        let record = record_at(s, head, row_token);
        //$ end
        //$ if PARTIAL_SUMS
        if ((block > 0u) & (tx == 0u) & (row < live)) {
            sums.x += records[record + 2u];
        }
        //$ end
        //$ if WEIGHTS
        sums = row_sum(thread, vec4<f32>(sums, 0.0, 0.0)).xy;
        if (last) {
            // The output of a query that sees no key is 0 whatever it is.
            inverse = select(0.0, finish(sums.y), sums.y > 0.0);
            dn = -sums.x * inverse * inverse;
        }
        //$ end
        //$ if KEYS
        top = 0.0;
        //$ for c in 0..EACH
        //$ if WEIGHTS
        own_$c = inverse * own_$c + dn * own_count_$c;
        //$ end
        top = max(top, largest(own_$c));
        //$ end
        let owns = reach(row_max(thread, vec4<f32>(top)).x);
        //$ for c in 0..EACH
        {
            let chunk = first + $cu;
            let own = split(own_$c * owns.down);
            sh_state[0][row * STRIDE + chunk / 2u][chunk % 2u] = own.high;
            sh_state[1][row * STRIDE + chunk / 2u][chunk % 2u] = own.low;
        }
        //$ end
        workgroupBarrier();   // what keys are summed with is there; all sums, and counts, have been read
        //$ if ADDED_COUNTS
        //$ for n in 0..SLABS
        counted_$n = row_sum(thread, vec4<f32>(counted_$n)).x;
        if (tx == 0u) {
            sh_counts[$nu * FOURS + row / 4u][row % 4u] += counted_$n;
        }
        //$ end
        //$ end
        sum_keys(matrices);
        workgroupBarrier();   // the sums are there
        let unit_scale = aux.params.write_scale * owns.up;
        //$ end
        //$ for h in 0..EACH_FOURS
        if ((tx < FEATURE_FOURS) & (row < live)) {
            let own = tx + $hu * TX;
            var x = p_$h;
            //$ if PASSES
            let units = min(aux.params.head_dim - min(4u * own, aux.params.head_dim), 4u);
            let partial = record + 3u + 4u * own;
            if (block > 0u) {
                //$ for e in 0..4
                if ($eu < units) {
                    x[$e] += records[partial + $eu];
                }
                //$ end
            }
            //$ end
            x *= inverse;
            //$ if WEIGHTS
            x += dn * z_$h;
            //$ end
            //$ if KEYS
            let sum = sh_sums[0][row * SUM_STRIDE + own];
            x += vec4<f32>(sum[0], sum[1], sum[2], sum[3]) * unit_scale;
            //$ end
            //$ if PASSES
            if (!last) {
                //$ for e in 0..4
                if ($eu < units) {
                    records[partial + $eu] = x[$e];
                }
                //$ end
            }
            //$ end
            if (last) {
                let out_row = out_base + row_token * aux.params.out.seq;
                store_out(out_row, own, select(vec4<f32>(), x * aux.params.read_scale, is_row(s, t0 + row)));
            }
        }
        //$ end
        //$ if RECORDS
        if ((tx == 0u) & (row < live)) {
            //$ if PARTIAL_SUMS
            if (!last) {
                records[record + 2u] = sums.x;
            }
            //$ end
            if (last) {
                records[record] = inverse;
                records[record + 1u] = dn;
            }
        }
        //$ end
        //$ if STILL
        workgroupBarrier();   // all units, and all sums, have been read
        //$ end
    }
}
