// Keys and values through workgroup memory: a slab of keys [TILE_K, STAGE_CHUNKS], then of values [V_KEYS, V_STRIDE].

const STAGE_CHUNKS: u32 = K_CHUNKS;
const K_STRIDE: u32 = K_CHUNKS + 1u;   // one more than needed: neighbouring keys fall into different banks
const V_STRIDE: u32 = TX * COLUMNS;
var<workgroup> sh_slab: array<vec4<f32>, SLAB>;

fn stage_k(thread: u32, j0: u32, c0: u32) {
    workgroupBarrier();   // the slab's previous use, and the previous tile's weights, have been read
    for (var t = thread; t < TILE_K * K_CHUNKS; t += THREADS) {
        let key = t / K_CHUNKS;
        let c = t % K_CHUNKS;
        let k = load_k(k_base + min(j0 + key, key_end - 1u) * aux.params.k.seq, min(c0 + c, aux.params.head_chunks - 1u));
        sh_slab[key * K_STRIDE + c] = within_head(c0 + c, k);
    }
    workgroupBarrier();   // the slab is whole
}

// Two vec4 of a key of the tile.
fn k_at(key: u32, chunk: u32) -> Pair_k {
    return Pair_k(sh_slab[key * K_STRIDE + chunk], sh_slab[key * K_STRIDE + chunk + 1u]);
}

fn stage_v(thread: u32, j0: u32, key0: u32, chunk0: u32) {
    workgroupBarrier();   // the slab's previous use has been read, all weights have been written
    for (var t = thread; t < V_KEYS * V_STRIDE; t += THREADS) {
        let key = t / V_STRIDE;
        let chunk = min(chunk0 + t % V_STRIDE, aux.params.value_chunks - 1u);
        let v = load_v(v_base + min(j0 + key, key_end - 1u) * aux.params.v.seq, chunk);
        sh_slab[t] = kept(v, key_seen(key0 + key));
    }
    workgroupBarrier();   // the slab is whole
}

// Two vec4 of value `key` of the slab.
fn v_at(j0: u32, key0: u32, key: u32, column: u32, chunk: u32) -> Pair_v {
    return Pair_v(sh_slab[key * V_STRIDE + column], sh_slab[key * V_STRIDE + column + 1u]);
}
