// An additive bias for each score, kept as bits: -inf masks, every other number counts.
@group(0) @binding(5) var<storage, read> bias: array<u32>;
var<private> bias_base: u32;

fn begin_bias(s: Sequence, head: u32) {
    bias_base = aux.params.bias.offset + s.batch * aux.params.bias.batch + head * aux.params.bias.head;
}

fn bias_bits(i: u32, j: u32) -> u32 {
    return bias[bias_base + i * aux.params.bias.query + j * aux.params.bias.key];
}
