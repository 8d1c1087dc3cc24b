// One number of the state that a token starts from.
fn load_number(s: Segment, head: u32, row: u32, column: u32) -> f32 {
    return state0[aux.params.state0.offset + s.state0 * aux.params.state0.item + head * aux.params.state0.head
        + row * aux.params.state0.row + column * aux.params.state0.column];
}
