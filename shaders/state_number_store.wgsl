// One number of the state that a token leaves.
fn store_number(s: Segment, head: u32, row: u32, column: u32, x: f32) {
    state[aux.params.state.offset + s.state * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + column * aux.params.state.column] = x;
}
