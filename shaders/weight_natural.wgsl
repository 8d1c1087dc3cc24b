// Scores in natural units, since a bias may hold numbers (f32::MIN) that log2(e) would push past the range.
// The weight of a score 128 below the maximum is zero in f32 already; the bound keeps the product finite.
fn weight(s: f32, m: f32) -> f32 {
    return exp2(max(s - m, -128.0) * 1.4426950408889634);
}

fn log_sum(m: f32, l: f32) -> f32 {
    return m + log(l);
}
