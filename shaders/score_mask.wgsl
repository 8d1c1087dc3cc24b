// One bit a score, rows padded to whole words: set means the query may see the key.
@group(0) @binding(6) var<storage, read> mask: array<u32>;
var<private> mask_base: u32;

fn begin_mask(s: Sequence, head: u32) {
    mask_base = aux.params.mask.offset + s.batch * aux.params.mask.batch + head * aux.params.mask.head;
}

fn mask_bit(i: u32, j: u32) -> bool {
    return ((mask[mask_base + i * aux.params.mask.query + (j >> 5u)] >> (j & 31u)) & 1u) == 1u;
}
