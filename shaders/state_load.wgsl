// Four columns of a row of the state that a segment starts from. What lies outside reads as zero.
fn load_state(s: Segment, head: u32, row: u32, chunk: u32) -> vec4<f32> {
    let stride = aux.params.state0.column;
    let e = aux.params.state0.offset + s.state0 * aux.params.state0.item + head * aux.params.state0.head
        + row * aux.params.state0.row + chunk * 4u * stride;
    let columns = select(0u, aux.params.value_dim - min(chunk * 4u, aux.params.value_dim), row < aux.params.state_rows);
    return vec4<f32>(
        select(0.0, state0[e], columns > 0u),
        select(0.0, state0[e + stride], columns > 1u),
        select(0.0, state0[e + 2u * stride], columns > 2u),
        select(0.0, state0[e + 3u * stride], columns > 3u),
    );
}
