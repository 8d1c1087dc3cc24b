// The state that a walk starts from: the caller's.
fn first_state(walk: Walk, head: u32, e: u32) -> f32 {
    let row = e / aux.params.value_dim;
    let column = e % aux.params.value_dim;
    return state0[aux.params.state0.offset + walk.state0 * aux.params.state0.item + head * aux.params.state0.head
        + row * aux.params.state0.row + column * aux.params.state0.column];
}
