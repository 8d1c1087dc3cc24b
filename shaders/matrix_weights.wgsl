// How the scores of a row in workgroup memory become weights of f16 there: the step of the online softmax that TX invocations of a row share.
// A maximum that rises by less does not rescale. Weights are at most exp(MARGIN), far below what f16 holds.
const MARGIN: f32 = 8.0;

var<workgroup> sh_risen: atomic<u32>;   // whether the reference of a row with weights has moved

// What is known of a row: its reference, the sum of the weights of this invocation's keys, and by what the last step scaled what came before.
struct Running {
    m: f32,
    l: f32,
    old: f32,
}

// Of row `row`, which is query `i`, the keys from j0 on; `lo` and `seen_keys` are the range that it sees.
fn weigh(thread: u32, row: u32, tx: u32, i: u32, j0: u32, lo: u32, seen_keys: u32, before: Running) -> Running {
    var top = before.m;
    var visible = 0u;   // bit k: the row sees this invocation's key k
    let at = j0 + tx * KEYS - lo;   // wraps before the range, so that one comparison tells both ends
    //$ for c in 0..KEY_CHUNKS
    let s_$c = sh_scores[row * SCORE_STRIDE + tx * KEY_CHUNKS + $cu];
    //$ for e in 0..4
    let t_$c_$e = score(s_$c[$e] * aux.params.score_scale, i, j0 + tx * KEYS + ($cu * 4u + $eu), at + ($cu * 4u + $eu) < seen_keys);
    top = select(top, max(top, t_$c_$e.value), t_$c_$e.visible);
    visible |= select(0u, 1u << ($cu * 4u + $eu), t_$c_$e.visible);
    mark_seen(tx * KEYS + ($cu * 4u + $eu), t_$c_$e.visible);
    //$ end
    //$ end
    top = row_max(thread, vec4<f32>(top)).x;
    let rises = top - before.m > MARGIN;   // exact for those near each other, unlike the sum
    if (rises & (before.l > 0.0)) {
        atomicOr(&sh_risen, 1u);
    }
    top = select(before.m, top, rises);
    let old = weight(before.m, top);
    var l = before.l * old;
    //$ for c in 0..KEY_CHUNKS
    //$ for e in 0..4
    let w_$c_$e = select(0.0, weight(t_$c_$e.value, top), ((visible >> ($cu * 4u + $eu)) & 1u) == 1u);
    l += w_$c_$e;
    //$ end
    sh_weights[row * KEY_STRIDE + (tx * KEY_CHUNKS + $cu) / 2u][(tx * KEY_CHUNKS + $cu) % 2u] = halves(vec4<f32>(w_$c_0, w_$c_1, w_$c_2, w_$c_3));
    //$ end
    return Running(top, l, old);
}
