// The last column of a row of the state that a segment starts from.
fn load_weight(s: Segment, head: u32, row: u32) -> f32 {
    return state0[aux.params.state0.offset + s.state0 * aux.params.state0.item + head * aux.params.state0.head
        + row * aux.params.state0.row + aux.params.value_dim * aux.params.state0.column];
}
