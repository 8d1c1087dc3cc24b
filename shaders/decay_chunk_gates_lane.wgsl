// A log decay a token, one token a lane: sums from a chunk's start to a lane's token, and over its `live` tokens. Where the walk goes
// backward, a token's own decay comes after it.
var<private> gates_before: LogDecay;
var<private> gates_of_all: LogDecay;

fn begin_decay(head: u32) {}

fn chunk_decay(s: Segment, head: u32, thread: u32, t0: u32, live: u32) {
    let g = select(LogDecay(), gate_of(s, head, token_at(s, t0 + min(thread, live - 1u))), thread < live);
    gates_before = subgroupExclusiveAdd(g) + g * aux.params.forward;
    gates_of_all = subgroupAdd(g);
}

fn decay_at(at: u32, live: u32) -> LogDecay {
    return gates_before;
}

fn decay_total(live: u32) -> LogDecay {
    return gates_of_all;
}
