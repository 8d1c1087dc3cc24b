// The log decay from a chunk's start to place `at`, and over its `live` tokens.
alias LogDecay = f32;

fn chunk_decay(s: Segment, head: u32, thread: u32, t0: u32, live: u32) {}

fn decay_at(at: u32, live: u32) -> LogDecay {
    return -slope * (f32(at) + aux.params.forward);
}

fn decay_total(live: u32) -> LogDecay {
    return -slope * f32(live);
}

fn log_decay(sum: LogDecay) -> f32 {
    return sum;
}

// From one sum to a longer one.
fn log_decay_between(sum: LogDecay, longer: LogDecay) -> f32 {
    return min(longer - sum, 0.0);
}
