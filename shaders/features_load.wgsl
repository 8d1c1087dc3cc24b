// The last column of a row of the state that a segment starts from, number $n of $t.
fn load_weight(s: Segment, head: u32, row: u32) -> f32 {
    return $t[aux.params.$t.offset + s.$n * aux.params.$t.item + head * aux.params.$t.head
        + row * aux.params.$t.row + aux.params.value_dim * aux.params.$t.column];
}
