// As state_number.wgsl, from the states that are written: each number is read by the invocation that replaces it.
fn load_number(s: Segment, head: u32, row: u32, column: u32) -> f32 {
    return state[aux.params.state.offset + s.state * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + column * aux.params.state.column];
}
