// The gradient of the log decays g of a chunk of tokens 1..b, from the state S before it and the gradient R of the state after it.
//
//   dg_t = e^(G_b) <R, S>  +  sum_{u >= t} read_u  +  sum_{s < t} kept_s  +  sum_{s < t <= u} pair_us,   G_u = g_1 + .. + g_u
//   read_u = scale e^(G_u) q_u S dout_u,  kept_s = e^(G_b - G_s) k_s R v_s,  pair_us = scale e^(G_u - G_s) (q_u k_s) (dout_u v_s)
//
// What crosses token t is summed as it is: the shorter identity, sums of q dq - k dk, takes the small difference of large numbers.
// No exponent is above 0. A workgroup of TX x TY invocations has a chunk of a head. Its states pass through a slab of workgroup memory;
// an invocation has ROWS tokens and a column of their products at a time. Pairs come in squares of BLOCK x BLOCK, those of the latest tokens
// first: a square is summed over later tokens in place, the sums so far in sh_open, then over earlier tokens.

const PAIR_STRIDE: u32 = BLOCK + 1u;     // one more than needed: neighbours fall into different banks
const K_STRIDE: u32 = K_CHUNKS + 1u;     // likewise
const SLAB_ROWS: u32 = 4u;               // vec4 of the key dim of a part of a state

var<workgroup> sh_slab: array<vec4<f32>, BLOCK * K_STRIDE>;      // [earlier token, dim], or [key dim, value dim] of a state
var<workgroup> sh_pairs: array<f32, BLOCK * PAIR_STRIDE>;        // [later token, earlier token]; at first [S or R, token, TX]
var<workgroup> sh_read: array<f32, CHUNK>;       // [token], as above
var<workgroup> sh_kept: array<f32, CHUNK>;
var<workgroup> sh_open: array<f32, CHUNK>;       // [earlier token]: its pairs so far
var<workgroup> sh_crossing: array<f32, CHUNK>;   // [token]: the pairs around it
var<workgroup> sh_sum: array<f32, THREADS>;

// What stands left and right of a state: of S the queries and the gradients of the output, of R the keys and values.
fn left_0(head: u32, s: Segment, token: u32, chunk: u32) -> vec4<f32> {
    let row = s.batch * aux.params.q.batch + head * aux.params.q.head + token * aux.params.q.seq;
    return load_q(aux.params.q.offset + row, chunk);
}

fn right_0(head: u32, s: Segment, token: u32, chunk: u32) -> vec4<f32> {
    let row = s.batch * aux.params.out.batch + head * aux.params.out.head + token * aux.params.out.seq;
    return load_out(aux.params.out.offset + row, chunk);
}

fn left_1(head: u32, s: Segment, token: u32, chunk: u32) -> vec4<f32> {
    let row = s.batch * aux.params.k.batch + head * aux.params.k.head + token * aux.params.k.seq;
    return load_k(aux.params.k.offset + row, chunk);
}

fn right_1(head: u32, s: Segment, token: u32, chunk: u32) -> vec4<f32> {
    let row = s.batch * aux.params.v.batch + head * aux.params.v.head + token * aux.params.v.seq;
    return load_v(aux.params.v.offset + row, chunk);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_at(workgroup, grid);
    if (!item.live) {
        return;
    }
    let s = segment_at(item.segment);
    let head = item.head;
    let live = s.tokens;   // at most CHUNK; what lies past them repeats the last one
    let tx = thread % TX;
    let ty = thread / TX;
    begin_decay(head);
    chunk_decay(s, head, thread, live);
    // The gradient R is item s.state, the state S item s.state0.
    let from_0 = Segment(s.batch, s.origin, s.tokens, s.keys, s.state0, s.state0);
    let from_1 = s;

    var meeting = 0.0;   // this invocation's share of <R, S>
    //$ for p in 0..2
    {
        //$ for r in 0..ROWS
        var z_$r = 0.0;
        //$ end
        for (var j0 = 0u; j0 < aux.params.value_chunks; j0 += TX) {
            //$ for r in 0..ROWS
            var y_$r = vec4<f32>();
            //$ end
            for (var i0 = 0u; i0 < aux.params.head_chunks; i0 += SLAB_ROWS) {
                workgroupBarrier();   // the slab's previous use has been read
                //$ for n in 0..2
                {
                    let e = thread + $nu * THREADS;
                    let row = i0 * 4u + e / TX;
                    let column = j0 + e % TX;
                    let x = load_state(from_$p, head, row, column);
                    sh_slab[e] = x;
                    if ($pu == 1u) {
                        meeting += dot(x, load_state(from_0, head, row, column));
                    }
                }
                //$ end
                workgroupBarrier();   // the slab is whole
                for (var i = i0; i < min(i0 + SLAB_ROWS, aux.params.head_chunks); i++) {
                    //$ for d in 0..4
                    let x_$d = sh_slab[((i - i0) * 4u + $du) * TX + tx];
                    //$ end
                    //$ for r in 0..ROWS
                    {
                        let l = left_$p(head, s, token_at(s, min(ty * ROWS + $ru, live - 1u)), i);
                        y_$r += l.x * x_0 + l.y * x_1 + l.z * x_2 + l.w * x_3;
                    }
                    //$ end
                }
            }
            if (j0 + tx < aux.params.value_chunks) {
                //$ for r in 0..ROWS
                z_$r += dot(y_$r, right_$p(head, s, token_at(s, min(ty * ROWS + $ru, live - 1u)), j0 + tx));
                //$ end
            }
        }
        //$ for r in 0..ROWS
        sh_pairs[($pu * CHUNK + ty * ROWS + $ru) * TX + tx] = z_$r;
        //$ end
    }
    //$ end
    sh_sum[thread] = meeting;
    sh_open[thread] = 0.0;
    workgroupBarrier();   // all shares are there
    var read = 0.0;
    var kept = 0.0;
    for (var n = 0u; n < TX; n++) {
        read += sh_pairs[thread * TX + n];
        kept += sh_pairs[(CHUNK + thread) * TX + n];
    }
    read *= aux.params.score_scale * exp(decay_from_start(thread));
    kept *= exp(decay_to_end(thread, live));
    sh_read[thread] = select(0.0, read, thread < live);
    sh_kept[thread] = select(0.0, kept, thread < live);

    for (var block = (live + BLOCK - 1u) / BLOCK; block > 0u; block--) {
        let later = (block - 1u) * BLOCK;
        var crossing = 0.0;
        for (var earlier = 0u; earlier <= later; earlier += BLOCK) {
            //$ for p in 0..2
            //$ for r in 0..4
            //$ for k in 0..4
            var s_$p_$r_$k = 0.0;
            //$ end
            //$ end
            //$ end
            //$ for r in 0..4
            let later_$r = token_at(s, min(later + ty * 4u + $ru, live - 1u));
            //$ end
            for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += K_CHUNKS) {
                workgroupBarrier();   // the slab's and the pairs' previous use has been read
                //$ for n in 0..K_LOADS
                {
                    let key = (thread + $nu * THREADS) / K_CHUNKS;
                    let chunk = thread % K_CHUNKS;   // what lies past the key dim is never looked at
                    sh_slab[key * K_STRIDE + chunk] = left_1(head, s, token_at(s, min(earlier + key, live - 1u)), c0 + chunk);
                }
                //$ end
                workgroupBarrier();   // the slab is whole
                for (var c = c0; c < min(c0 + K_CHUNKS, aux.params.head_chunks); c++) {
                    //$ for k in 0..4
                    let k_$k = sh_slab[(tx + $ku * TX) * K_STRIDE + c - c0];
                    //$ end
                    //$ for r in 0..4
                    {
                        let q = left_0(head, s, later_$r, c);
                        //$ for k in 0..4
                        s_0_$r_$k += dot(q, k_$k);
                        //$ end
                    }
                    //$ end
                }
            }
            for (var c0 = 0u; c0 < aux.params.value_chunks; c0 += K_CHUNKS) {
                workgroupBarrier();   // the slab's previous use has been read
                //$ for n in 0..K_LOADS
                {
                    let key = (thread + $nu * THREADS) / K_CHUNKS;
                    let chunk = thread % K_CHUNKS;   // what lies past the value dim is never looked at
                    sh_slab[key * K_STRIDE + chunk] = right_1(head, s, token_at(s, min(earlier + key, live - 1u)), c0 + chunk);
                }
                //$ end
                workgroupBarrier();   // the slab is whole
                for (var c = c0; c < min(c0 + K_CHUNKS, aux.params.value_chunks); c++) {
                    //$ for k in 0..4
                    let v_$k = sh_slab[(tx + $ku * TX) * K_STRIDE + c - c0];
                    //$ end
                    //$ for r in 0..4
                    {
                        let dout = right_0(head, s, later_$r, c);
                        //$ for k in 0..4
                        s_1_$r_$k += dot(dout, v_$k);
                        //$ end
                    }
                    //$ end
                }
            }
            //$ for r in 0..4
            //$ for k in 0..4
            {
                let u = later + ty * 4u + $ru;
                let t = earlier + tx + $ku * TX;
                let pair = s_0_$r_$k * s_1_$r_$k * aux.params.score_scale * exp(decay_between(place_at(t), place_at(u)));
                sh_pairs[(u - later) * PAIR_STRIDE + t - earlier] = select(0.0, pair, (t < u) & (u < live));
            }
            //$ end
            //$ end
            workgroupBarrier();   // the square is whole
            if (thread < BLOCK) {
                var sum = sh_open[earlier + thread];
                for (var n = BLOCK; n > 0u; n--) {
                    let e = (n - 1u) * PAIR_STRIDE + thread;
                    sum += sh_pairs[e];
                    sh_pairs[e] = sum;
                }
                sh_open[earlier + thread] = sum;
            }
            workgroupBarrier();   // later tokens are summed
            if (thread < BLOCK) {
                for (var n = 0u; n < min(BLOCK, later + thread - earlier); n++) {
                    crossing += sh_pairs[thread * PAIR_STRIDE + n];
                }
            }
        }
        if (thread < BLOCK) {
            sh_crossing[later + thread] = crossing;
        }
    }

    // All parts are there: barriers have passed since they were left, but for the earliest tokens' crossing, which is this invocation's.
    var gradient = 0.0;
    for (var n = 0u; n < THREADS; n++) {
        gradient += sh_sum[n];
    }
    gradient = gradient * exp(decay_total(live)) + sh_crossing[thread];
    for (var u = thread; u < live; u++) {
        gradient += sh_read[u];
    }
    for (var t = 0u; t < min(thread, live); t++) {
        gradient += sh_kept[t];
    }
    //$ if GATED
    if (thread < live) {
        dg[aux.params.state0.offset + s.batch * aux.params.state0.item + head * aux.params.state0.head
            + token_at(s, thread) * aux.params.state0.row] = gradient;
    }
    //$ end
    //$ if SUM
    workgroupBarrier();   // the shares have been read
    sh_sum[thread] = select(0.0, gradient, thread < live);
    workgroupBarrier();   // all gradients are there
    if (thread == 0u) {
        var sum = 0.0;
        for (var n = 0u; n < live; n++) {
            sum += sh_sum[n];
        }
        state[aux.params.totals + s.state0 * aux.params.heads + head - aux.params.head_first] = sum;
    }
    //$ end
}
