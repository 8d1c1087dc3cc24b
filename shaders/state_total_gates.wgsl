// The log decay of a whole segment, behind the states, for the scan over segments.
fn store_total(s: Segment, head: u32, total: f32) {
    state[aux.params.totals + s.state * aux.params.heads + head - aux.params.head_first] = total;
}
