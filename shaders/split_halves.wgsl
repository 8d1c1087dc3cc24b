// Numbers in f32 as sums of two in f16. A power of two brings the largest to [2^14, 2^15) first, where f16 has most room on either side:
// the sum is off by 2^-23 of a number, or by 2^-39 of the largest.
struct Halves {
    high: array<f16, 4>,
    low: array<f16, 4>,
}

// The high half is rounded by its bits: drivers hold a number that goes to f16 and back for the number itself.
fn split(x: vec4<f32>) -> Halves {
    let high = bitcast<vec4<f32>>((bitcast<vec4<u32>>(x) + vec4<u32>(0x1000u)) & vec4<u32>(0xffffe000u));
    return Halves(halves(high), halves(x - high));
}

fn whole(x: array<f16, 4>) -> vec4<f32> {
    return vec4<f32>(f32(x[0]), f32(x[1]), f32(x[2]), f32(x[3]));
}

// The power of two for numbers of at most `top`, and its inverse.
struct Reach {
    down: f32,
    up: f32,
}

fn reach(top: f32) -> Reach {
    let exponent = clamp(bitcast<u32>(top) >> 23u, 20u, 254u);   // with these both are f32
    return Reach(bitcast<f32>((268u - exponent) << 23u), bitcast<f32>((exponent - 14u) << 23u));
}

fn largest(x: vec4<f32>) -> f32 {
    let a = abs(x);
    return max(max(a.x, a.y), max(a.z, a.w));
}
