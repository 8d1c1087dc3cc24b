// Linear attention with decay, chunk by chunk (Lightning attention, arXiv 2405.17381), for GPUs.
//
//   S_t = exp(g_t) S_{t-1} + k_t v_t^T,  out_t = scale q_t S_t
//
// A workgroup of TX x TY invocations owns COLUMNS vec4 columns of the value dim and walks a segment's tokens CHUNK at a time.
// Three layouts take turns. Scores: invocation (tx, ty) has rows ty * ROWS .. + ROWS against keys tx, tx + TX, ..; keys pass through a
// slab of workgroup memory, weights leave through sh_weights. Output: one column and OUT_ROWS rows an invocation. State: the same
// column and STATE_ROWS rows of the key dim, in registers, with a copy in sh_state for all to read. All decays are exp of sums <= 0.

const WEIGHT_STRIDE: u32 = CHUNK + 1u;   // one more than needed: neighbours tx fall into different banks
const K_STRIDE: u32 = K_CHUNKS + 1u;     // likewise

//$ if OUT
var<workgroup> sh_slab: array<vec4<f32>, CHUNK * K_STRIDE>;           // [key, head dim]
var<workgroup> sh_weights: array<f32, CHUNK * WEIGHT_STRIDE>;         // [key, query]
var<workgroup> sh_state: array<vec4<f32>, HEAD_DIM * COLUMNS>;        // [head dim, column]
//$ end

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
    begin_decay(head);
    let column = item.split * COLUMNS + thread % COLUMNS;   // of the value dim in vec4
    let state_row = thread / COLUMNS * STATE_ROWS;
    let k_base = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_base = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    //$ if OUT
    let q_base = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let out_base = aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head;
    let tx = thread % TX;
    let row = thread / TX * ROWS;                    // first row of the scores, in the chunk
    let out_row = thread / COLUMNS * OUT_ROWS;       // first row of the output, in the chunk
    //$ end

    //$ for d in 0..STATE_ROWS
    var state_$d = vec4<f32>();
    //$ end
    if (s.state0 != NONE) {
        //$ for d in 0..STATE_ROWS
        state_$d = load_state(s, head, state_row + $du, column);
        //$ end
    }
    //$ if OUT
    //$ for d in 0..STATE_ROWS
    sh_state[(state_row + $du) * COLUMNS + thread % COLUMNS] = state_$d;
    //$ end
    //$ end

    var decay = 0.0;   // log decay of the whole segment
    for (var t0 = 0u; t0 < s.tokens; t0 += CHUNK) {
        let live = min(CHUNK, s.tokens - t0);   // tokens of this chunk; what lies past them repeats the last one
        chunk_decay(s, head, thread, t0, live);
        let total = decay_total(live);
        decay += log_decay(total);

        //$ if OUT
        //$ for r in 0..ROWS
        //$ for k in 0..KEYS
        var s_$r_$k = 0.0;
        //$ end
        //$ end
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += K_CHUNKS) {
            let chunks = min(K_CHUNKS, aux.params.head_chunks - c0);
            workgroupBarrier();   // the slab's and the weights' previous use has been read; the state is whole
            //$ for n in 0..K_LOADS
            {
                let key = (thread + $nu * THREADS) / K_CHUNKS;
                let chunk = thread % K_CHUNKS;   // what lies past the head dim is never looked at
                let token = token_at(s, t0 + min(key, live - 1u));
                sh_slab[key * K_STRIDE + chunk] = load_k(k_base + token * aux.params.k.seq, c0 + chunk);
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var c = 0u; c < chunks; c++) {
                //$ for r in 0..ROWS
                let q_$r = load_q(q_base + token_at(s, t0 + min(row + $ru, live - 1u)) * aux.params.q.seq, c0 + c);
                //$ end
                //$ for k in 0..KEYS
                {
                    let k = sh_slab[(tx + $ku * TX) * K_STRIDE + c];
                    //$ for r in 0..ROWS
                    s_$r_$k += dot(q_$r, k);
                    //$ end
                }
                //$ end
            }
        }
        //$ for r in 0..ROWS
        {
            let at = decay_at(row + $ru, live);
            //$ for k in 0..KEYS
            {
                let key = tx + $ku * TX;
                let w = s_$r_$k * aux.params.score_scale * exp(log_decay_between(decay_at(key, live), at));
                sh_weights[key * WEIGHT_STRIDE + row + $ru] = select(0.0, w, (key <= row + $ru) & (key < live));
            }
            //$ end
        }
        //$ end

        // What the state before the chunk gives.
        //$ for r in 0..OUT_ROWS
        var o_$r = vec4<f32>();
        //$ end
        for (var c = 0u; c < aux.params.head_chunks; c++) {
            //$ for d in 0..4
            let s_$d = sh_state[(c * 4u + $du) * COLUMNS + thread % COLUMNS];
            //$ end
            //$ for r in 0..OUT_ROWS
            {
                let q = load_q(q_base + token_at(s, t0 + min(out_row + $ru, live - 1u)) * aux.params.q.seq, c);
                o_$r += q.x * s_0 + q.y * s_1 + q.z * s_2 + q.w * s_3;
            }
            //$ end
        }
        //$ for r in 0..OUT_ROWS
        o_$r *= exp(log_decay(decay_at(out_row + $ru, live))) * aux.params.read_scale;
        //$ end
        workgroupBarrier();   // the weights are there; the state has been read
        //$ end

        let keep = exp(log_decay(total));
        //$ for d in 0..STATE_ROWS
        state_$d *= keep;
        //$ end
        for (var key = 0u; key < live; key++) {
            let token = token_at(s, t0 + key);
            let v = load_v(v_base + token * aux.params.v.seq, column);
            //$ if OUT
            //$ for r in 0..OUT_ROWS
            o_$r += sh_weights[key * WEIGHT_STRIDE + out_row + $ru] * v;
            //$ end
            //$ end
            let written = v * (exp(log_decay_between(decay_at(key, live), total)) * aux.params.write_scale);
            //$ for d in 0..STATE_ROWS step 4
            let k_$d = load_k(k_base + token * aux.params.k.seq, (state_row + $du) / 4u);
            state_$d += k_$d.x * written;
            state_${d+1} += k_$d.y * written;
            state_${d+2} += k_$d.z * written;
            state_${d+3} += k_$d.w * written;
            //$ end
        }
        //$ if OUT
        //$ for d in 0..STATE_ROWS
        sh_state[(state_row + $du) * COLUMNS + thread % COLUMNS] = state_$d;
        //$ end
        //$ for r in 0..OUT_ROWS
        if (out_row + $ru < live) {
            store_out(out_base + token_at(s, t0 + out_row + $ru) * aux.params.out.seq, column, o_$r);
        }
        //$ end
        //$ end
    }

    //$ if STATE
    //$ for d in 0..STATE_ROWS
    store_state(s, head, state_row + $du, column, state_$d);
    //$ end
    //$ if TOTAL
    if ((thread == 0u) & (item.split == 0u)) {
        store_total(s, head, decay);
    }
    //$ end
    //$ end
}
