// Softmax attention of few rows over a stretch of many keys (Flash-Decoding) for GPUs. Partial results are merged by flash_merge.
//
//   m = max_j s_j,  l = sum_j exp(s_j - m),  o = sum_j exp(s_j - m) v_j   for each row, over the keys j of the stretch
//
// Reading K and V once is what takes the time, so ROWS rows share a workgroup: THREADS keys at a time are staged, K_CHUNKS columns of
// them, each invocation taking the scores of one key; then each takes a value column of every GROUPS-th key.
const GROUPS: u32 = THREADS / VALUE_CHUNKS;
const TILE_K: u32 = THREADS;
const QUADS: u32 = ROWS / 4u;
const BLOCKS: u32 = THREADS / 8u;
const K_STRIDE: u32 = K_CHUNKS + 1u;   // no bank conflicts between neighbouring keys

var<workgroup> sh_slab: array<vec4<f32>, THREADS * K_STRIDE>;    // [key, chunk]; at the end [invocation]
var<workgroup> sh_weights: array<vec4<f32>, THREADS * QUADS>;    // [key, four rows]: scores, then weights; at the end sums
var<workgroup> sh_blocks: array<vec4<f32>, BLOCKS * QUADS>;      // [four rows, block of eight keys]
var<workgroup> sh_v_at: array<u32, THREADS>;                     // [key]: where its values lie

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
    let row = item.tile * ROWS;
    let last = s.queries * group - 1u;   // padding rows repeat the last one; they are never stored
    let block = thread % BLOCKS;
    let quad = min(thread / BLOCKS, QUADS - 1u);

    //$ for r in 0..ROWS
    let i_$r = min(row + $ru, last) / group;
    let head_$r = item.kv_head * group + min(row + $ru, last) % group;
    let q_at_$r = aux.params.q.offset + s.batch * aux.params.q.batch + head_$r * aux.params.q.head + (s.q_start + i_$r) * aux.params.q.seq;
    let lo_$r = first_key(s, i_$r);
    let seen_keys_$r = max(end_key(s, i_$r), lo_$r) - lo_$r;
    var m_$r = lowest();
    var l_$r = 0.0;   // of this invocation's keys
    var o_$r = vec4<f32>();
    //$ end

    let k_first = k_base(s, item.kv_head);
    let v_first = v_base(s, item.kv_head);
    let column = item.split * VALUE_CHUNKS + thread % VALUE_CHUNKS;
    for (var j0 = item.first; j0 < item.end; j0 += THREADS) {
        workgroupBarrier();   // the previous turn's weights have been read
        clear_seen(thread);
        sh_v_at[thread] = v_row(v_first, s, min(j0 + thread, item.end - 1u));
        //$ for r in 0..ROWS
        var s_$r = 0.0;
        //$ end
        for (var c0 = 0u; c0 < aux.params.head_chunks; c0 += K_CHUNKS) {
            let chunks = min(K_CHUNKS, aux.params.head_chunks - c0);
            //$ for n in 0..K_CHUNKS
            {
                // What lies past the head dim is never looked at.
                let key = (thread + $nu * THREADS) / K_CHUNKS;
                let chunk = thread % K_CHUNKS;
                sh_slab[key * K_STRIDE + chunk] = load_k(k_row(k_first, s, min(j0 + key, item.end - 1u)), c0 + chunk);
            }
            //$ end
            workgroupBarrier();   // the slab is whole
            for (var c = 0u; c < chunks; c++) {
                let k = sh_slab[thread * K_STRIDE + c];
                //$ for r in 0..ROWS
                s_$r += dot(load_q(q_at_$r, c0 + c), k);
                //$ end
            }
            workgroupBarrier();   // the slab has been read
        }

        var visible = 0u;   // bit r: row r sees this invocation's key
        //$ for r in 0..ROWS
        {
            begin_scores(s, head_$r);
            let j = j0 + thread;
            let t = score(s_$r * aux.params.score_scale, i_$r, min(j, item.end - 1u), j - lo_$r < seen_keys_$r && j < item.end);
            s_$r = t.value;
            visible |= select(0u, 1u << $ru, t.visible);
        }
        //$ end
        mark_seen(thread, visible != 0u);

        // The maximum of each row: over blocks of eight keys, then over the blocks.
        //$ for r in 0..ROWS step 4
        sh_weights[thread * QUADS + $ru / 4u] = vec4<f32>(
            select(lowest(), s_$r, ((visible >> $ru) & 1u) == 1u),
            select(lowest(), s_${r+1}, ((visible >> ${r+1}u) & 1u) == 1u),
            select(lowest(), s_${r+2}, ((visible >> ${r+2}u) & 1u) == 1u),
            select(lowest(), s_${r+3}, ((visible >> ${r+3}u) & 1u) == 1u),
        );
        //$ end
        workgroupBarrier();   // all scores are there
        var top = sh_weights[block * 8u * QUADS + quad];
        //$ for n in 1..8
        top = max(top, sh_weights[(block * 8u + $nu) * QUADS + quad]);
        //$ end
        if (thread < BLOCKS * QUADS) {
            sh_blocks[thread] = top;
        }
        workgroupBarrier();   // all blocks are there
        //$ for r in 0..ROWS step 4
        var top_$r = vec4<f32>(m_$r, m_${r+1}, m_${r+2}, m_${r+3});
        for (var b = 0u; b < BLOCKS; b++) {
            top_$r = max(top_$r, sh_blocks[$ru / 4u * BLOCKS + b]);
        }
        let old_$r = vec4<f32>(weight(m_$r, top_$r.x), weight(m_${r+1}, top_$r.y), weight(m_${r+2}, top_$r.z), weight(m_${r+3}, top_$r.w));
        m_$r = top_$r.x;
        m_${r+1} = top_$r.y;
        m_${r+2} = top_$r.z;
        m_${r+3} = top_$r.w;
        o_$r *= old_$r.x;
        o_${r+1} *= old_$r.y;
        o_${r+2} *= old_$r.z;
        o_${r+3} *= old_$r.w;
        let w_$r = vec4<f32>(
            select(0.0, weight(s_$r, m_$r), ((visible >> $ru) & 1u) == 1u),
            select(0.0, weight(s_${r+1}, m_${r+1}), ((visible >> ${r+1}u) & 1u) == 1u),
            select(0.0, weight(s_${r+2}, m_${r+2}), ((visible >> ${r+2}u) & 1u) == 1u),
            select(0.0, weight(s_${r+3}, m_${r+3}), ((visible >> ${r+3}u) & 1u) == 1u),
        );
        l_$r = l_$r * old_$r.x + w_$r.x;
        l_${r+1} = l_${r+1} * old_$r.y + w_$r.y;
        l_${r+2} = l_${r+2} * old_$r.z + w_$r.z;
        l_${r+3} = l_${r+3} * old_$r.w + w_$r.w;
        sh_weights[thread * QUADS + $ru / 4u] = w_$r;
        //$ end
        workgroupBarrier();   // all weights are there
        for (var n = thread / VALUE_CHUNKS; n < min(THREADS, item.end - j0); n += GROUPS) {
            let v = kept(load_v(sh_v_at[n], min(column, aux.params.value_chunks - 1u)), key_seen(n));
            //$ for r in 0..ROWS step 4
            let w_$r = sh_weights[n * QUADS + $ru / 4u];
            o_$r += w_$r.x * v;
            o_${r+1} += w_$r.y * v;
            o_${r+2} += w_$r.z * v;
            o_${r+3} += w_$r.w * v;
            //$ end
        }
    }

    // Sums over the invocations: of each row's weights, then of its output.
    workgroupBarrier();   // the last weights have been read
    //$ for r in 0..ROWS step 4
    sh_weights[thread * QUADS + $ru / 4u] = vec4<f32>(l_$r, l_${r+1}, l_${r+2}, l_${r+3});
    //$ end
    workgroupBarrier();   // all parts are there
    var sum = vec4<f32>();
    for (var n = 0u; n < 8u; n++) {
        sum += sh_weights[(block * 8u + n) * QUADS + quad];
    }
    if (thread < BLOCKS * QUADS) {
        sh_blocks[thread] = sum;
    }
    let at = partial_at(item.kv_head, item.partial);
    let stride = aux.params.value_chunks + 1u;
    //$ for r in 0..ROWS
    workgroupBarrier();   // the slab's previous use has been read
    sh_slab[thread] = o_$r;
    workgroupBarrier();   // all parts are there
    if (row + $ru <= last && thread < VALUE_CHUNKS) {
        var o = vec4<f32>();
        for (var g = 0u; g < GROUPS; g++) {
            o += sh_slab[thread + g * VALUE_CHUNKS];
        }
        if (column < aux.params.value_chunks) {
            partials[at + $ru * stride + column] = o;
        }
        if (thread == 0u && item.split == 0u) {
            var l = 0.0;
            for (var b = 0u; b < BLOCKS; b++) {
                l += sh_blocks[$ru / 4u * BLOCKS + b][$ru % 4u];
            }
            partials[at + $ru * stride + aux.params.value_chunks] = vec4<f32>(m_$r, l, 0.0, 0.0);
        }
    }
    //$ end
}
