// A token's record: 1 / (its denominator), the gradient of its denominator; then, where the value dim takes several passes, their sums.
fn record_at(s: Segment, head: u32, token: u32) -> u32 {
    return aux.params.gate.offset + s.batch * aux.params.gate.batch + head * aux.params.gate.head + token * aux.params.gate.seq;
}
