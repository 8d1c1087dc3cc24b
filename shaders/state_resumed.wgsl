// As state_load.wgsl, from the states that are written: those of the stretch before lie with those of this one.
fn load_state(s: Segment, head: u32, row: u32, chunk: u32) -> vec4<f32> {
    let stride = aux.params.state.column;
    let e = aux.params.state.offset + s.state0 * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + chunk * 4u * stride;
    let columns = select(0u, aux.params.value_dim - min(chunk * 4u, aux.params.value_dim), row < aux.params.state_rows);
    return vec4<f32>(
        select(0.0, state[e], columns > 0u),
        select(0.0, state[e + stride], columns > 1u),
        select(0.0, state[e + 2u * stride], columns > 2u),
        select(0.0, state[e + 3u * stride], columns > 3u),
    );
}
