// Keys and values through workgroup memory: a slab of keys [TILE_K, STAGE_CHUNKS], then of values [TILE_K, TX * PIECE_COLUMNS].
var<private> k_base: u32;   // of the sequence's first key
var<private> v_base: u32;
var<private> key_end: u32;

const STAGE_CHUNKS: u32 = K_CHUNKS;
const K_STRIDE: u32 = K_CHUNKS + 1u;   // one more than needed: neighbouring keys fall into different banks
const V_STRIDE: u32 = TX * PIECE_COLUMNS;
var<workgroup> sh_slab: array<vec4<f32>, TILE_K * max(K_STRIDE, V_STRIDE)>;

fn begin_keys(s: Sequence, kv_head: u32, end: u32) {
    k_base = aux.params.k.offset + s.batch * aux.params.k.batch + kv_head * aux.params.k.head + s.k_start * aux.params.k.seq;
    v_base = aux.params.v.offset + s.batch * aux.params.v.batch + kv_head * aux.params.v.head + s.k_start * aux.params.v.seq;
    key_end = end;
}

fn stage_k(thread: u32, j0: u32, c0: u32) {
    workgroupBarrier();   // the slab's last use, and the last tile's weights, have been read
    for (var t = thread; t < TILE_K * K_CHUNKS; t += THREADS) {
        let key = t / K_CHUNKS;
        let c = t % K_CHUNKS;
        if (c0 + c < aux.params.head_chunks) {
            sh_slab[key * K_STRIDE + c] = load_k(k_base + min(j0 + key, key_end - 1u) * aux.params.k.seq, c0 + c);
        }
    }
    workgroupBarrier();   // the slab is whole
}

fn k_at(key: u32, chunk: u32) -> vec4<f32> {
    return sh_slab[key * K_STRIDE + chunk];
}

fn stage_v(thread: u32, j0: u32, chunk0: u32) {
    workgroupBarrier();   // the slab's last use has been read, all weights have been written
    for (var t = thread; t < TILE_K * V_STRIDE; t += THREADS) {
        let key = t / V_STRIDE;
        let chunk = chunk0 + t % V_STRIDE;
        if (chunk < aux.params.value_chunks) {
            let v = load_v(v_base + min(j0 + key, key_end - 1u) * aux.params.v.seq, chunk);
            // A value that no row here sees may be NaN: zero it, since its weight of zero would not.
            sh_slab[t] = select(vec4<f32>(), v, key_seen(key));
        }
    }
    workgroupBarrier();   // the slab is whole
}

fn v_at(j0: u32, key: u32, column: u32, chunk: u32) -> vec4<f32> {
    return sh_slab[key * V_STRIDE + column];
}
