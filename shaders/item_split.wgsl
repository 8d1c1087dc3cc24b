// One workgroup's work: a tile of rows of one key/value head of one sequence, a stretch of its keys, and a part of the value dim.
// A sequence's rows are its queries times the heads of the group, the heads of a query beside each other.
struct Item {
    live: bool,
    record: u32,
    tile: u32,
    first: u32,     // the stretch of keys
    end: u32,
    partial: u32,   // the first of its rows of partial results
    kv_head: u32,
    split: u32,
}

// The list is in the order that suits the device.
fn item_at(workgroup: vec3<u32>, grid: vec3<u32>) -> Item {
    // One way out: FXC takes what a function returns early for uninitialised.
    let p = aux.params.first + workgroup.x + workgroup.y * grid.x;
    let q = p / aux.params.splits;
    let kv_heads = aux.params.heads / aux.params.group;
    let entry = aux.params.list + 5u * (q / kv_heads);
    var item = Item();
    if (p < $last) {
        // No stretch ends so late that a loop over its keys could wrap, whatever the buffer holds.
        item = Item(
            true, $work[entry], $work[entry + 1u], $work[entry + 2u], min($work[entry + 3u], 1u << 30u), $work[entry + 4u],
            aux.params.head_first / aux.params.group + q % kv_heads, p % aux.params.splits,
        );
    }
    return item;
}

// Where the partial results of a row lie: its value columns in vec4, then (maximum, sum, 0, 0).
fn partial_at(kv_head: u32, partial: u32) -> u32 {
    return (kv_head * aux.params.partials + partial) * (aux.params.value_chunks + 1u);
}

// Where the query of a row lies.
fn q_row(s: Sequence, kv_head: u32, packed: u32) -> u32 {
    let head = kv_head * aux.params.group + packed % aux.params.group;
    return aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head + (s.q_start + packed / aux.params.group) * aux.params.q.seq;
}
