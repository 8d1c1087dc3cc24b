// Scores in units of log2: one exp2 a weight, no multiply.
fn weight(s: f32, m: f32) -> f32 {
    return exp2(s - m);
}

fn log_sum(m: f32, l: f32) -> f32 {
    return (m + log2(l)) * 0.6931471805599453;
}
