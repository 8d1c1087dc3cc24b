// Two numbers as bf16, to the nearest even; numbers beyond its range become its largest, a NaN stays one.
fn pack_pair(x: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(x);
    let magnitude = bits & vec2<u32>(0x7fffffffu);
    let rounded = min(magnitude + 0x7fffu + ((magnitude >> vec2<u32>(16u)) & vec2<u32>(1u)), vec2<u32>(0x7f7fffffu));
    let kept = select(rounded, vec2<u32>(0x7fc00000u), magnitude > vec2<u32>(0x7f800000u));
    let w = ((bits & vec2<u32>(0x80000000u)) | kept) >> vec2<u32>(16u);
    return w.x | (w.y << 16u);
}
