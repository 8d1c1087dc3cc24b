// The log decay over a whole segment, as the pass over segments has left it behind the states.
fn begin_decay(head: u32) {}

fn segment_decay(segment: u32, head: u32) -> f32 {
    return segment_states[aux.params.totals + segment * aux.params.heads + head - aux.params.head_first];
}
