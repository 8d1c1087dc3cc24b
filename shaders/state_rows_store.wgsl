// Four rows of a column of the state that a segment ends in.
fn store_state_rows(s: Segment, head: u32, row: u32, column: u32, x: vec4<f32>) {
    let stride = aux.params.state.row;
    let e = aux.params.state.offset + s.state * aux.params.state.item + head * aux.params.state.head
        + row * stride + column * aux.params.state.column;
    let rows = select(0u, aux.params.state_rows - min(row, aux.params.state_rows), column < aux.params.value_dim);
    if (rows > 0u) { state[e] = x.x; }
    if (rows > 1u) { state[e + stride] = x.y; }
    if (rows > 2u) { state[e + 2u * stride] = x.z; }
    if (rows > 3u) { state[e + 3u * stride] = x.w; }
}
