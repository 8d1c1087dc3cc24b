// cap tanh(x / cap): the division is folded into score_scale. Drivers make tanh of exponentials, whose difference has few digits near 0,
// where most scores are: there a polynomial stands for it, off by 2^-26 of itself at most (minimax, up to 0.5). tanh is 1 in f32 from
// 9.1 on; the bound keeps exp(2x) finite.
fn softcapped(x: f32) -> f32 {
    let w = x * x;
    let near = x + x * w * (-0.333331439 + w * (0.13325879 + w * (-0.0530454943 + w * 0.0172414915)));
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * min(abs(x), 15.0)));
    return aux.params.softcap * select(select(far, -far, x < 0.0), near, abs(x) < 0.5);
}
