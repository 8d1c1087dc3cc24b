// Two numbers as f16, to the nearest; numbers beyond its range become its largest, a NaN stays one.
fn pack_pair(x: vec2<f32>) -> u32 {
    let nan = (bitcast<vec2<u32>>(x) & vec2<u32>(0x7fffffffu)) > vec2<u32>(0x7f800000u);
    let w = pack2x16float(clamp(x, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
    return select(w & 0xffffu, 0x7e00u, nan.x) | select(w & 0xffff0000u, 0x7e000000u, nan.y);
}
