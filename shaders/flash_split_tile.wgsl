// Softmax attention of few rows over a stretch of many keys (Flash-Decoding) for GPUs. Partial results are merged by flash_merge.
//
//   m = max_j s_j,  l = sum_j exp(s_j - m),  o = sum_j exp(s_j - m) v_j   for each row, over the keys j of the stretch
//
// Reading K and V once is what takes the time, so 4 QUADS rows share a workgroup: KEYS keys at a time are staged, K_CHUNKS columns of
// them; each invocation takes the scores of one key and four rows, then a value column of every GROUPS-th key for these rows.
const GROUPS: u32 = KEYS / VALUE_CHUNKS;
const TILE_K: u32 = KEYS;
const THREADS: u32 = KEYS * QUADS;
const BLOCKS: u32 = KEYS / 8u;
const K_STRIDE: u32 = K_CHUNKS + 1u;   // no bank conflicts between neighbouring keys

var<workgroup> sh_slab: array<vec4<f32>, KEYS * K_STRIDE>;      // [key, chunk]; at the end [invocation]
var<workgroup> sh_weights: array<vec4<f32>, KEYS * QUADS>;      // [four rows, key]: scores, then weights; at the end sums
var<workgroup> sh_blocks: array<vec4<f32>, BLOCKS * QUADS>;     // [four rows, block of eight keys]
var<workgroup> sh_v_at: array<u32, KEYS>;                       // [key]: where its values lie

@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

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
    let s = sequence_at(item.record);
    let group = aux.params.group;
    let key = thread % KEYS;
    let quad = thread / KEYS;
    let row = item.tile * (4u * QUADS) + 4u * quad;
    let last = s.queries * group - 1u;   // padding rows repeat the last one; they are never stored

    //$ for r in 0..4
    let q_at_$r = q_row(s, item.kv_head, min(row + $ru, last));
    var m_$r = lowest();
    var l_$r = 0.0;   // of this invocation's keys
    var o_$r = vec4<f32>();
    //$ end

    let k_first = k_base(s, item.kv_head);
    let v_first = v_base(s, item.kv_head);
    let column = item.split * VALUE_CHUNKS + key % VALUE_CHUNKS;
    for (var j0 = item.first; j0 < item.end; j0 += KEYS) {
        workgroupBarrier();   // the previous turn's weights have been read
        clear_seen(thread);
        if (thread < KEYS) {
            sh_v_at[thread] = v_row(v_first, s, min(j0 + thread, item.end - 1u));
        }
        //$ for r in 0..4
        var s_$r = 0.0;
        //$ end
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += K_CHUNKS) {
            let chunks = min(K_CHUNKS, aux.params.head_chunks - c0);
            for (var n = thread; n < KEYS * K_CHUNKS; n += THREADS) {
                // What lies past the head dim is never looked at.
                let staged = n / K_CHUNKS;
                let chunk = n % K_CHUNKS;
                sh_slab[staged * K_STRIDE + chunk] = load_k(k_row(k_first, s, min(j0 + staged, item.end - 1u)), c0 + chunk);
            }
            workgroupBarrier();   // the slab is whole
            for (var c = 0u; c < chunks; c++) {
                let k = sh_slab[key * K_STRIDE + c];
                //$ for r in 0..4
                s_$r += dot(load_q(q_at_$r, c0 + c), k);
                //$ end
            }
            workgroupBarrier();   // the slab has been read
        }

        var visible = vec4<bool>();
        //$ for r in 0..4
        {
            // Calculated anew each turn, since registers are scarcer than time.
            let packed = min(row + $ru, last);
            let i = packed / group;
            let lo = first_key(s, i);
            let j = j0 + key;
            begin_scores(s, item.kv_head * group + packed % group);
            let in_range = (j - lo < max(end_key(s, i), lo) - lo) & (j < item.end);
            let t = score(s_$r * aux.params.score_scale, i, min(j, item.end - 1u), in_range);
            s_$r = t.value;
            visible[$r] = t.visible;
        }
        //$ end
        mark_seen(key, any(visible));

        // The maximum of each row: over blocks of eight keys, then over the blocks.
        let scores = vec4<f32>(s_0, s_1, s_2, s_3);
        sh_weights[thread] = select(vec4<f32>(lowest()), scores, visible);
        workgroupBarrier();   // all scores are there
        if (thread < BLOCKS * QUADS) {
            var top = sh_weights[thread * 8u];
            for (var n = 1u; n < 8u; n++) {
                top = max(top, sh_weights[thread * 8u + n]);
            }
            sh_blocks[thread] = top;
        }
        workgroupBarrier();   // all blocks are there
        var top = vec4<f32>(m_0, m_1, m_2, m_3);
        for (var b = 0u; b < BLOCKS; b++) {
            top = max(top, sh_blocks[quad * BLOCKS + b]);
        }
        var weights = vec4<f32>();
        //$ for r in 0..4
        {
            let old = weight(m_$r, top[$r]);
            m_$r = top[$r];
            o_$r *= old;
            weights[$r] = select(0.0, weight(s_$r, m_$r), visible[$r]);
            l_$r = l_$r * old + weights[$r];
        }
        //$ end
        sh_weights[thread] = weights;
        workgroupBarrier();   // all weights are there
        for (var n = key / VALUE_CHUNKS; n < min(KEYS, item.end - j0); n += GROUPS) {
            let v = kept(load_v(sh_v_at[n], min(column, aux.params.value_chunks - 1u)), key_seen(n));
            let w = sh_weights[quad * KEYS + n];
            //$ for r in 0..4
            o_$r += w[$r] * v;
            //$ end
        }
    }

    // Sums over the invocations: of each row's weights, then of its output.
    workgroupBarrier();   // the last weights have been read
    sh_weights[thread] = vec4<f32>(l_0, l_1, l_2, l_3);
    workgroupBarrier();   // all parts are there
    if (thread < BLOCKS * QUADS) {
        var sum = vec4<f32>();
        for (var n = 0u; n < 8u; n++) {
            sum += sh_weights[thread * 8u + n];
        }
        sh_blocks[thread] = sum;
    }
    let at = partial_at(item.kv_head, item.partial + 4u * quad);
    let stride = aux.params.value_chunks + 1u;
    //$ for r in 0..4
    workgroupBarrier();   // the slab's previous use has been read
    sh_slab[thread] = o_$r;
    workgroupBarrier();   // all parts are there
    if ((row + $ru <= last) & (key < VALUE_CHUNKS)) {
        var o = vec4<f32>();
        for (var g = 0u; g < GROUPS; g++) {
            o += sh_slab[thread + g * VALUE_CHUNKS];
        }
        if (column < aux.params.value_chunks) {
            partials[at + $ru * stride + column] = o;
        }
        if ((key == 0u) & (item.split == 0u)) {
            var l = 0.0;
            for (var b = 0u; b < BLOCKS; b++) {
                l += sh_blocks[quad * BLOCKS + b][$r];
            }
            partials[at + $ru * stride + aux.params.value_chunks] = vec4<f32>(m_$r, l, 0.0, 0.0);
        }
    }
    //$ end
}
