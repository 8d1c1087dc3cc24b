// A new row of keys, or of values: `source_row` reads it, `cache_row` is where it goes.
struct NewRow {
    live: bool,
    token: u32,     // among the new tokens of all sequences
    kv_head: u32,
}

fn new_row(row: u32) -> NewRow {
    return NewRow(row < aux.params.entries * aux.params.heads, row / aux.params.heads, row % aux.params.heads);
}

fn source_row(row: NewRow) -> u32 {
    return aux.params.k.offset + row.kv_head * aux.params.k.head + row.token * aux.params.k.seq;
}

fn cache_row(row: NewRow) -> u32 {
    let s = sequence_at(aux.words[aux.params.list + row.token]);
    let key = s.keys - s.queries + row.token - s.q_start;
    let page = aux.words[aux.params.tables + s.k_start + (key >> aux.params.page_log2)];
    let slot = key & ((1u << aux.params.page_log2) - 1u);
    return aux.params.out.offset + page * aux.params.out.batch + row.kv_head * aux.params.out.head + slot * aux.params.out.seq;
}
