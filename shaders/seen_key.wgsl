// Where a bias or a mask may hide any key: a value that no row of the workgroup sees may be NaN, so it is zeroed, since its weight of
// zero would not.
fn kept(v: vec4<f32>, seen: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, seen == 1u);
}
