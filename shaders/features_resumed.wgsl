// As features_load.wgsl, from the states that are written.
fn load_weight(s: Segment, head: u32, row: u32) -> f32 {
    return state[aux.params.state.offset + s.state0 * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + aux.params.value_dim * aux.params.state.column];
}
