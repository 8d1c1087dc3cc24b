// TILE_K rows of $t, from row `first` on, reach the slab at `at`, with the columns from `chunk0` on. Rows past `last` repeat it.
fn stage_$t(thread: u32, base: u32, first: u32, last: u32, chunk0: u32, at: u32) {
    //$ for n in 0..$D_LOADS
    {
        let row = (thread + $nu * THREADS) / $D_CHUNKS;
        let chunk = (thread + $nu * THREADS) % $D_CHUNKS;
        let x = load_$t(base + min(first + row, last) * aux.params.$t.seq, chunk0 + chunk);
        sh_slab[at + row * $D_STRIDE + chunk / 2u][chunk % 2u] = halves(within_$w(chunk0 + chunk, x));
    }
    //$ end
}
