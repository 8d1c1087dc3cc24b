// How a softcapped score moves with what it caps: 1 - tanh^2(x), without the difference of nearly equal numbers.
fn softcap_slope(x: f32) -> f32 {
    let e = exp(-2.0 * abs(clamp(x, -15.0, 15.0)));
    return 4.0 * e / ((1.0 + e) * (1.0 + e));
}
