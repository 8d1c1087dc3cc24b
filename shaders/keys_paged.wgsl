// Where the keys of a sequence lie in $t: in the pages of its table, whose first entry `k_start` counts from.
fn $t_base(s: Sequence, kv_head: u32) -> u32 {
    return aux.params.$t.offset + kv_head * aux.params.$t.head;
}

fn $t_row(base: u32, s: Sequence, key: u32) -> u32 {
    let page = aux.words[aux.params.tables + s.k_start + (key >> aux.params.page_log2)];
    let slot = key & ((1u << aux.params.page_log2) - 1u);
    return base + page * aux.params.$t.batch + slot * aux.params.$t.seq;
}
