// A log decay a token, as a whole number and the rest of it. Sums of whole numbers are exact, so that a token which leaves nothing of what
// came before takes no digits from those beside it. Below -104 nothing is left of an f32.
@group(0) @binding(6) var<storage, read> gate: array<f32>;

alias LogDecay = vec2<f32>;

fn gate_of(s: Segment, head: u32, token: u32) -> LogDecay {
    let e = aux.params.gate.offset + s.batch * aux.params.gate.batch + head * aux.params.gate.head + token * aux.params.gate.seq;
    let g = max(gate[e], -104.0);
    return LogDecay(trunc(g), g - trunc(g));
}

fn log_decay(sum: LogDecay) -> f32 {
    return sum.x + sum.y;
}

// From one sum to a longer one.
fn log_decay_between(sum: LogDecay, longer: LogDecay) -> f32 {
    return min(log_decay(longer - sum), 0.0);
}
