// Where the keys of a sequence lie in $t: one after the other.
fn $t_base(s: Sequence, kv_head: u32) -> u32 {
    return aux.params.$t.offset + s.batch * aux.params.$t.batch + kv_head * aux.params.$t.head + s.k_start * aux.params.$t.seq;
}

fn $t_row(base: u32, s: Sequence, key: u32) -> u32 {
    return base + key * aux.params.$t.seq;
}
