// The state that a walk starts from: that of the longer segment which it is a part of.
fn first_state(walk: Walk, head: u32, e: u32) -> f32 {
    let size = aux.params.head_dim * aux.params.value_dim;
    return segment_states[(walk.state0 * aux.params.heads + head - aux.params.head_first) * size + e];
}
