// cap tanh(x / cap): the division is folded into score_scale. tanh is 1 in f32 from 9.1 on; the bound keeps exp(2x) finite.
fn softcapped(x: f32) -> f32 {
    return aux.params.softcap * tanh(clamp(x, -15.0, 15.0));
}
