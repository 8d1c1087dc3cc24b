// Four columns of a row of the state that a segment starts from, number $n of $t. What lies outside reads as zero.
fn load_state(s: Segment, head: u32, row: u32, chunk: u32) -> vec4<f32> {
    let stride = aux.params.$t.column;
    let e = aux.params.$t.offset + s.$n * aux.params.$t.item + head * aux.params.$t.head
        + row * aux.params.$t.row + chunk * 4u * stride;
    let columns = select(0u, aux.params.value_dim - min(chunk * 4u, aux.params.value_dim), row < aux.params.state_rows);
    return vec4<f32>(
        select(0.0, $t[e], columns > 0u),
        select(0.0, $t[e + stride], columns > 1u),
        select(0.0, $t[e + 2u * stride], columns > 2u),
        select(0.0, $t[e + 3u * stride], columns > 3u),
    );
}
