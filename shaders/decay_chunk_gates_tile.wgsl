// A log decay a token: sums from a chunk's start to each place, and over its `live` tokens, in workgroup memory. Where the walk goes
// backward, a token's own decay comes after it.
var<workgroup> sh_gate: array<LogDecay, CHUNK>;        // [token]
var<workgroup> sh_decay: array<LogDecay, CHUNK + 1u>;   // [token], then the sum of all

fn begin_decay(head: u32) {}

fn chunk_decay(s: Segment, head: u32, thread: u32, t0: u32, live: u32) {
    if (thread < CHUNK) {
        let g = gate_of(s, head, token_at(s, t0 + min(thread, live - 1u)));
        sh_gate[thread] = select(LogDecay(), g, thread < live);
    }
    workgroupBarrier();   // all gates are there, and the previous chunk's sums have been read
    if (thread <= CHUNK) {
        var sum = LogDecay();
        for (var n = 0u; n < thread; n++) {
            sum += sh_gate[n];
        }
        sh_decay[thread] = select(sum + sh_gate[min(thread, CHUNK - 1u)] * aux.params.forward, sum, thread == CHUNK);
    }
    workgroupBarrier();   // all sums are there
}

fn decay_at(at: u32, live: u32) -> LogDecay {
    return sh_decay[at];
}

fn decay_total(live: u32) -> LogDecay {
    return sh_decay[CHUNK];
}
