// The values of keys j0.. reach the slab by column, four keys and four columns an invocation at a time: so neighbours read 32 bytes of a
// row, and write to different banks. An invocation has the same keys in all columns.
const V_STEP: u32 = THREADS / TILE_K * 4u;

fn stage_values(thread: u32, s: Sequence, v_first: u32, column: u32, j0: u32, end: u32) {
    let key = thread % TILE_K / 4u * 4u;
    let first_chunk = thread / TILE_K * 4u + thread % 4u;
    let seen = keys_seen(key);
    //$ for k in 0..4
    let row_$k = v_row(v_first, s, min(j0 + key + $ku, end - 1u));
    //$ end
    //$ for n in 0..V_LOADS
    if ((V_EVEN == 1u) | (first_chunk + $nu * V_STEP < VALUE_CHUNKS)) {
        let chunk = first_chunk + $nu * V_STEP;
        //$ for k in 0..4
        let v_$k = kept(load_v(row_$k, column + chunk), ((seen >> $ku) & 1u) == 1u);
        //$ end
        //$ for e in 0..4
        sh_slab[VALUES_AT + (chunk * 4u + $eu) * KEY_STRIDE + key / 8u][key / 4u % 2u] = halves(vec4<f32>(v_0[$e], v_1[$e], v_2[$e], v_3[$e]));
        //$ end
    }
    //$ end
}
