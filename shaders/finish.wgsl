// What an output row is multiplied by at the end: one over its sum of weights, or zero where it saw no key.
struct Finish {
    scale: f32,
    m: f32,
    l: f32,
}

fn finish(m: f32, l: f32, head: u32) -> Finish {
    return Finish(select(0.0, 1.0 / l, l > 0.0), m, l);
}
