// A log decay a token, one token a lane: sums from a chunk's start to a lane's token, and over its `live` tokens. Where the walk goes
// backward, a token's own decay comes after it.
@group(0) @binding(6) var<storage, read> gate: array<f32>;
var<private> gate_at: f32;
var<private> gate_total: f32;

fn begin_decay(head: u32) {}

fn chunk_decay(s: Segment, head: u32, thread: u32, t0: u32, live: u32) {
    let e = aux.params.gate.offset + s.batch * aux.params.gate.batch + head * aux.params.gate.head
        + token_at(s, t0 + min(thread, live - 1u)) * aux.params.gate.seq;
    let g = select(0.0, gate[e], thread < live);
    gate_at = subgroupExclusiveAdd(g) + g * aux.params.forward;
    gate_total = subgroupAdd(g);
}

fn decay_at(at: u32, live: u32) -> f32 {
    return gate_at;
}

fn decay_total(live: u32) -> f32 {
    return gate_total;
}
