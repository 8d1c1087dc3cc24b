// One number of the state that a token starts from, number $n of $t.
fn load_number(s: Segment, head: u32, row: u32, column: u32) -> f32 {
    return $t[aux.params.$t.offset + s.$n * aux.params.$t.item + head * aux.params.$t.head
        + row * aux.params.$t.row + column * aux.params.$t.column];
}
