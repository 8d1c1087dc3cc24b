// Four columns of a row of the state that a segment ends in.
fn store_state(s: Segment, head: u32, row: u32, chunk: u32, x: vec4<f32>) {
    let stride = aux.params.state.column;
    let e = aux.params.state.offset + s.state * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + chunk * 4u * stride;
    let columns = select(0u, aux.params.value_dim - min(chunk * 4u, aux.params.value_dim), row < aux.params.state_rows);
    if (columns > 0u) { state[e] = x.x; }
    if (columns > 1u) { state[e + stride] = x.y; }
    if (columns > 2u) { state[e + 2u * stride] = x.z; }
    if (columns > 3u) { state[e + 3u * stride] = x.w; }
}
