// Where a bias or a mask may hide any key: what no row of this invocation sees may be NaN, so it is zeroed, since its weight of zero
// would not. Bit n of `seen` says that this invocation sees key n; of kernels that own keys, query n.
fn some_row_sees(seen: u32, key: u32) -> bool {
    return ((seen >> key) & 1u) == 1u;
}

fn kept(v: vec4<f32>, keep: bool) -> vec4<f32> {
    return select(vec4<f32>(), v, keep);
}
