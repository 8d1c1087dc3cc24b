// Keys and values straight from storage: for drivers where workgroup memory is no faster than a cache.
var<private> k_tile: u32;   // the tile's first key

const STAGE_CHUNKS: u32 = 0x7ffffffeu;   // the whole head dim at once
const V_KEYS: u32 = TILE_K;

fn stage_k(thread: u32, j0: u32, c0: u32) {
    workgroupBarrier();   // the previous tile's weights have been read
    k_tile = j0;
}

// Two vec4 of a key of the tile.
fn k_at(key: u32, chunk: u32) -> Pair_k {
    let pair = load_pair_k(k_base + min(k_tile + key, key_end - 1u) * aux.params.k.seq, chunk);
    return Pair_k(pair.a, within_head(chunk + 1u, pair.b));
}

fn stage_v(thread: u32, j0: u32, key0: u32, chunk0: u32) {
    workgroupBarrier();   // all weights have been written
}

// Two vec4 of value `key` from j0 on, which is key `key0 + key` of the tile.
fn v_at(j0: u32, key0: u32, key: u32, column: u32, chunk: u32) -> Pair_v {
    let pair = load_pair_v(v_base + min(j0 + key, key_end - 1u) * aux.params.v.seq, chunk);
    let keep = key_seen(key0 + key);
    return Pair_v(kept(pair.a, keep), kept(pair.b, keep));
}
