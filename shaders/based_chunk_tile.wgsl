// The linear attention of BASED (arXiv 2402.18668), chunk by chunk, for GPUs.
//
//   out_t = sum_s w_ts v_s / (sum_s w_ts + eps),  w = 1 + x + x^2 / 2,  x = scale q_t . k_s
//
// The gradient of v is the same sum from the last token to the first, keys in the role of queries and queries in that of keys.
//
// A workgroup owns COLUMNS vec4 columns of the value dim and walks a segment's tokens CHUNK at a time. The state lies in workgroup
// memory, in blocks: all k_i k_j of four i and four j, for each pair of fours (a, b) with a <= b; then the k_j, and 1. Three layouts
// take turns. Scores: invocation (tx, ty) has rows ty * ROWS .. + ROWS against keys tx, tx + TX, ..; weights leave through sh_weights.
// Output: one column and OUT_ROWS rows an invocation, which read all blocks. State: the same column and one block an invocation.

//$ if SCORES
var<workgroup> sh_weights: array<f32, CHUNK * WEIGHT_STRIDE>;                          // [key, query]
//$ end
var<workgroup> sh_state: array<vec4<f32>, (16u * PAIRS + 4u * FOURS + 1u) * COLUMNS>;  // [row, column]
//$ if WEIGHTS
var<workgroup> sh_counts: array<vec4<f32>, 4u * PAIRS + FOURS>;                        // [row / 4], the sums without values
//$ end

const ONE: u32 = 0xffffffffu;   // in place of a four: [1, 0, 0, 0]

// The block that an invocation owns.
struct Block {
    a: u32,
    b: u32,
    first: u32,   // its first row
    rows: u32,
}

fn block_at(index: u32) -> Block {
    if (index >= PAIRS + FOURS) {
        return Block(ONE, ONE, 16u * PAIRS + 4u * FOURS, select(0u, 1u, index == PAIRS + FOURS));
    }
    if (index >= PAIRS) {
        return Block(ONE, index - PAIRS, 16u * PAIRS + 4u * (index - PAIRS), 4u);
    }
    var a = 0u;
    var rest = index;
    while (rest >= FOURS - a) {
        rest -= FOURS - a;
        a += 1u;
    }
    return Block(a, a + rest, 16u * index, 16u);
}

// The row of the packed state that row `r` of a block is, each once if `once`; NONE where it is none.
fn packed_row(block: Block, r: u32, once: bool) -> u32 {
    let i = select(4u * block.a + r / 4u + 1u, 0u, block.a == ONE);
    let j = select(4u * block.b + r % 4u + 1u, 0u, block.b == ONE);
    let absent = (max(i, j) > aux.params.head_dim) | (once & (i > j));
    return select(feature_row(min(i, j), max(i, j)), NONE, absent);
}

// What row `r` of a block is in the packed state, over what it is here.
fn packed_share(block: Block, r: u32) -> f32 {
    return select(1.0, SQUARE, (block.a == block.b) & (block.a != ONE) & (r / 4u == r % 4u));
}

//$ if KEYS
fn key_four(row: u32, four: u32) -> vec4<f32> {
    if (four == ONE) {
        return vec4<f32>(1.0, 0.0, 0.0, 0.0);
    }
    return within_head(four, load_k(row, four)) * aux.params.write_scale;
}
//$ end

fn component(x: vec4<f32>, i: u32) -> f32 {
    return select(select(x.x, x.y, i == 1u), select(x.z, x.w, i == 3u), i >= 2u);
}

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
    let s = segment_at(item.segment);
    let head = item.head;
    let local_column = thread % COLUMNS;
    let column = item.split * COLUMNS + local_column;   // of the value dim in vec4
    let block = block_at(thread / COLUMNS);
    let state_at = block.first * COLUMNS + local_column;
    //$ if WEIGHTS
    let count_row = local_column * COUNT_ROWS;   // the first row of four of the block whose sums without values this invocation has
    let count_rows = min(block.rows / 4u, count_row + COUNT_ROWS);
    //$ end
    //$ if KEYS
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ end
    //$ if OUT
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    let out_row = thread / COLUMNS * OUT_ROWS;       // first row of the output, in the chunk
    //$ end
    //$ if SCORES
    let tx = thread % TX;
    let row = thread / TX * ROWS;                    // first row of the scores, in the chunk
    //$ end

    for (var r = 0u; r < block.rows; r++) {
        var x = vec4<f32>();
        let packed = packed_row(block, r, false);
        if ((s.state0 != NONE) & (packed != NONE)) {
            x = load_state(s, head, packed, column) / packed_share(block, r);
        }
        sh_state[state_at + r * COLUMNS] = x;
    }
    //$ if WEIGHTS
    var count = 0.0;   // of the keys before the chunk
    if (s.state0 != NONE) {
        count = load_weight(s, head, 0u);
    }
    for (var i = count_row; i < count_rows; i++) {
        var x = vec4<f32>();
        for (var j = 0u; j < 4u; j++) {
            let packed = packed_row(block, 4u * i + j, false);
            if ((s.state0 != NONE) & (packed != NONE)) {
                let w = load_weight(s, head, packed) / packed_share(block, 4u * i + j);
                x = select(x, vec4<f32>(w), vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(j));
            }
        }
        sh_counts[block.first / 4u + i] = x;
    }
    //$ end

    for (var t0 = 0u; t0 < s.tokens; t0 += CHUNK) {
        let live = min(CHUNK, s.tokens - t0);   // tokens of this chunk; what lies past them repeats the last one
        //$ if KEYS
        let keys = min(live, added_tokens(s) - min(t0, added_tokens(s)));   // those that are keys; what is none may hold anything
        //$ end
        //$ if OUT
        workgroupBarrier();   // the weights' previous use has been read; the state is whole (who only adds to it, adds to their own)
        //$ end

        //$ if SCORES
        //$ for r in 0..ROWS
        //$ for k in 0..KEYS_EACH
        var s_$r_$k = 0.0;
        //$ end
        //$ end
        for (var c = 0u; c < aux.params.head_chunks; c++) {
            //$ for r in 0..ROWS
            let q_$r = load_q(q_base + token_at(s, t0 + min(row + $ru, live - 1u)) * aux.params.q.seq, c);
            //$ end
            //$ for k in 0..KEYS_EACH
            {
                let k = load_k(k_base + token_at(s, t0 + min(tx + $ku * TX, live - 1u)) * aux.params.k.seq, c);
                //$ for r in 0..ROWS
                s_$r_$k += dot(q_$r, k);
                //$ end
            }
            //$ end
        }
        //$ for r in 0..ROWS
        //$ for k in 0..KEYS_EACH
        {
            let key = tx + $ku * TX;
            let x = s_$r_$k * aux.params.score_scale;
            sh_weights[key * WEIGHT_STRIDE + row + $ru] = select(0.0, 1.0 + x + 0.5 * x * x, (key <= row + $ru) & (key < keys));
        }
        //$ end
        //$ end
        //$ end

        //$ if OUT
        // What the state before the chunk gives, READ_ROWS at a time, as registers hold.
        //$ for r in 0..OUT_ROWS
        let q_row_$r = q_base + token_at(s, t0 + min(out_row + $ru, live - 1u)) * aux.params.q.seq;
        var o_$r = sh_state[(16u * PAIRS + 4u * FOURS) * COLUMNS + local_column];
        //$ if WEIGHTS
        var total_$r = count;
        //$ end
        //$ end
        //$ for h in 0..OUT_ROWS step READ_ROWS
        {
            var at = local_column;
            //$ if WEIGHTS
            var count_at = 0u;
            //$ end
            for (var a = 0u; a < FOURS; a++) {
                //$ for r in h..h+READ_ROWS
                let qa_$r = within_head(a, load_q(q_row_$r, a)) * aux.params.read_scale;
                //$ end
                for (var b = a; b < FOURS; b++) {
                    // A block on the diagonal has each product twice.
                    let factor = select(1.0, 0.5, a == b);
                    //$ for r in h..h+READ_ROWS
                    let qb_$r = within_head(b, load_q(q_row_$r, b)) * (aux.params.read_scale * factor);
                    //$ end
                    //$ for i in 0..4
                    {
                        //$ for j in 0..4
                        let s_$j = sh_state[at + (4u * $iu + $ju) * COLUMNS];
                        //$ end
                        //$ if WEIGHTS
                        let counts = sh_counts[count_at + $iu];
                        //$ end
                        //$ for r in h..h+READ_ROWS
                        {
                            let qq = qa_$r[$i] * qb_$r;
                            o_$r += qq.x * s_0 + qq.y * s_1 + qq.z * s_2 + qq.w * s_3;
                            //$ if WEIGHTS
                            total_$r += dot(qq, counts);
                            //$ end
                        }
                        //$ end
                    }
                    //$ end
                    at += 16u * COLUMNS;
                    //$ if WEIGHTS
                    count_at += 4u;
                    //$ end
                }
            }
            for (var b = 0u; b < FOURS; b++) {
                //$ for j in 0..4
                let s_$j = sh_state[at + $ju * COLUMNS];
                //$ end
                //$ for r in h..h+READ_ROWS
                {
                    let q = within_head(b, load_q(q_row_$r, b)) * aux.params.read_scale;
                    o_$r += q.x * s_0 + q.y * s_1 + q.z * s_2 + q.w * s_3;
                    //$ if WEIGHTS
                    total_$r += dot(q, sh_counts[count_at]);
                    //$ end
                }
                //$ end
                at += 4u * COLUMNS;
                //$ if WEIGHTS
                count_at += 1u;
                //$ end
            }
        }
        //$ end
        //$ if SCORES
        workgroupBarrier();   // the weights are there; the state has been read
        for (var key = 0u; key < keys; key++) {
            let token = token_at(s, t0 + key);
            let v = load_v(v_base + token * aux.params.v.seq, column) * value_scale(s, head, token);
            //$ for r in 0..OUT_ROWS
            {
                let w = sh_weights[key * WEIGHT_STRIDE + out_row + $ru];
                o_$r += w * v;
                //$ if WEIGHTS
                total_$r += w;
                //$ end
            }
            //$ end
        }
        //$ end
        //$ for r in 0..OUT_ROWS
        if (out_row + $ru < live) {
            //$ if WEIGHTS
            let y = o_$r * finish(total_$r);
            //$ end
            //$ if RAW
            let y = o_$r;
            //$ end
            store_out(
                out_base + token_at(s, t0 + out_row + $ru) * aux.params.out.seq,
                column,
                select(vec4<f32>(), y, is_row(s, t0 + out_row + $ru)),
            );
        }
        //$ end
        //$ end

        //$ if KEYS
        // What the chunk adds to the state: ADD_ROWS of a block's four lines at a time, as registers hold.
        if (block.rows > 0u) {
            //$ for h in 0..4 step ADD_ROWS
            {
                //$ for i in h..h+ADD_ROWS
                //$ for j in 0..4
                var added_$i_$j = vec4<f32>();
                //$ end
                //$ end
                //$ if WEIGHTS
                //$ for n in h..1
                //$ for c in 0..COUNT_ROWS
                var counted_$c = vec4<f32>();
                //$ end
                //$ end
                //$ end
                for (var key = 0u; key < keys; key++) {
                    let token = token_at(s, t0 + key);
                    let k_row = k_base + token * aux.params.k.seq;
                    let ka = key_four(k_row, block.a);
                    let kb = key_four(k_row, block.b);
                    let v = load_v(v_base + token * aux.params.v.seq, column) * value_scale(s, head, token);
                    //$ for i in h..h+ADD_ROWS
                    //$ for j in 0..4
                    added_$i_$j += (ka[$i] * kb[$j]) * v;
                    //$ end
                    //$ end
                    //$ if WEIGHTS
                    //$ for n in h..1
                    let weight = value_weight(s, head, token);
                    //$ for c in 0..COUNT_ROWS
                    counted_$c += component(ka, count_row + $cu) * weight * kb;
                    //$ end
                    //$ end
                    //$ end
                }
                //$ for i in h..h+ADD_ROWS
                //$ for j in 0..4
                if (4u * $iu + $ju < block.rows) {
                    sh_state[state_at + (4u * $iu + $ju) * COLUMNS] += added_$i_$j;
                }
                //$ end
                //$ end
                //$ if WEIGHTS
                //$ for n in h..1
                //$ for c in 0..COUNT_ROWS
                if (count_row + $cu < count_rows) {
                    sh_counts[block.first / 4u + count_row + $cu] += counted_$c;
                }
                //$ end
                //$ end
                //$ end
            }
            //$ end
        }
        //$ if WEIGHTS
        count += chunk_weight(s, head, t0, keys);
        //$ end
        //$ end
    }

    //$ if STATE
    if (s.state == NONE) {
        return;
    }
    for (var r = 0u; r < block.rows; r++) {
        let packed = packed_row(block, r, true);
        if (packed != NONE) {
            store_state(s, head, packed, column, sh_state[state_at + r * COLUMNS] * packed_share(block, r));
        }
    }
    if (item.split == 0u) {
        for (var i = count_row; i < count_rows; i++) {
            for (var j = 0u; j < 4u; j++) {
                let packed = packed_row(block, 4u * i + j, true);
                if (packed != NONE) {
                    let w = component(sh_counts[block.first / 4u + i], j) * packed_share(block, 4u * i + j);
                    store_weight(s, head, packed, w);
                }
            }
        }
        if (thread == 0u) {
            store_weight(s, head, 0u, count);
        }
    }
    //$ end
}
