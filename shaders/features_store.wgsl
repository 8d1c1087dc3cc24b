// The last column of a row of the state that a segment ends in.
fn store_weight(s: Segment, head: u32, row: u32, x: f32) {
    state[aux.params.state.offset + s.state * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + aux.params.value_dim * aux.params.state.column] = x;
}
