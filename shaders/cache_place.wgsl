// A new row of keys, or of values: `source_row` reads it, `place` is where it goes.
struct NewRow {
    live: bool,
    token: u32,     // among the new tokens of all sequences
    kv_head: u32,
    place: u32,
}

fn new_row(row: u32) -> NewRow {
    let token = row / aux.params.heads;
    let kv_head = row % aux.params.heads;
    if (token >= aux.params.entries) {
        return NewRow(false, 0u, 0u, 0u);
    }
    // The new tokens are the last ones of their sequence. Where it is too short for them, the first have no place.
    let s = sequence_at(aux.words[aux.params.list + token]);
    let end = s.stored + token - s.q_start;
    let key = max(end, s.queries) - s.queries;
    let page = aux.words[aux.params.tables + s.k_start + (key >> aux.params.page_log2)];
    let slot = key & ((1u << aux.params.page_log2) - 1u);
    let place = aux.params.out.offset + page * aux.params.out.batch + kv_head * aux.params.out.head + slot * aux.params.out.seq;
    return NewRow(end >= s.queries, token, kv_head, place);
}

fn source_row(row: NewRow) -> u32 {
    return aux.params.k.offset + row.kv_head * aux.params.k.head + row.token * aux.params.k.seq;
}
