// Log-sum-exp of a row's scores, natural logarithm; -inf, as bits, where it saw no key.
@group(0) @binding(4) var<storage, read_write> lse: array<u32>;

fn store_lse(s: Sequence, head: u32, i: u32, f: Finish) {
    let at = aux.params.lse.offset + s.batch * aux.params.lse.batch + head * aux.params.lse.head + (s.q_start + i) * aux.params.lse.seq;
    lse[at] = select(0xff800000u, bitcast<u32>(log_sum(f.m, f.l)), f.l > 0.0);
}
