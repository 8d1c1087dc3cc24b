// Where a bias or a mask may hide any key: what no row of the tile sees may be NaN, so it is zeroed, since its weight of zero would
// not. One bit a key; of kernels that own keys, a query. The kernel's own barriers order the three steps: it clears before keys are
// staged for scores, marks before what is summed is staged, and looks while it stages that.
var<workgroup> sh_seen: array<atomic<u32>, (TILE_K + 31u) / 32u>;

fn clear_seen(thread: u32) {
    if (thread < (TILE_K + 31u) / 32u) {
        atomicStore(&sh_seen[thread], 0u);
    }
}

fn mark_seen(key: u32, seen: bool) {
    if (seen) {
        atomicOr(&sh_seen[key / 32u], 1u << (key & 31u));
    }
}

fn key_seen(key: u32) -> bool {
    return ((atomicLoad(&sh_seen[key / 32u]) >> (key & 31u)) & 1u) == 1u;
}

// The same of the keys from `key` on, a bit each, of which none lies in another word.
fn keys_seen(key: u32) -> u32 {
    return atomicLoad(&sh_seen[key / 32u]) >> (key & 31u);
}

fn kept(v: vec4<f32>, keep: bool) -> vec4<f32> {
    return select(vec4<f32>(), v, keep);
}
