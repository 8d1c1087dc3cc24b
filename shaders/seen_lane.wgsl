// Where a bias or a mask may hide any key: what no row of the subgroup sees may be NaN, so it is zeroed, since its weight of zero
// would not. Bit n of `seen` says that this lane sees key n; of kernels that own keys, query n. The lanes' bits meet by shuffles, since
// Mesa 22.3's llvmpipe computes subgroupOr wrongly.
fn some_row_sees(seen: u32, lane: u32) -> bool {
    var all = seen;
    //$ for n in 0..LANES_LOG2
    all |= subgroupShuffleXor(all, 1u << $nu);
    //$ end
    return ((all >> lane) & 1u) == 1u;
}

fn kept(v: vec4<f32>, keep: bool) -> vec4<f32> {
    return select(vec4<f32>(), v, keep);
}
