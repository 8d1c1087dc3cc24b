// Four rows of a column of the state that a segment starts from, number $n of $t. What lies outside reads as zero.
fn load_state_rows(s: Segment, head: u32, row: u32, column: u32) -> vec4<f32> {
    let stride = aux.params.$t.row;
    let e = aux.params.$t.offset + s.$n * aux.params.$t.item + head * aux.params.$t.head
        + row * stride + column * aux.params.$t.column;
    let rows = select(0u, aux.params.state_rows - min(row, aux.params.state_rows), column < aux.params.value_dim);
    return vec4<f32>(
        select(0.0, $t[e], rows > 0u),
        select(0.0, $t[e + stride], rows > 1u),
        select(0.0, $t[e + 2u * stride], rows > 2u),
        select(0.0, $t[e + 3u * stride], rows > 3u),
    );
}
