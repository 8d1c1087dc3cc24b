// A log decay a token: sums from a chunk's start to each place, and over its `live` tokens, in workgroup memory. Where the walk goes
// backward, a token's own decay comes after it.
@group(0) @binding(6) var<storage, read> gate: array<f32>;
var<workgroup> sh_gate: array<f32, CHUNK>;        // [token]
var<workgroup> sh_decay: array<f32, CHUNK + 1u>;   // [token], then the sum of all

fn begin_decay(head: u32) {}

fn chunk_decay(s: Segment, head: u32, thread: u32, t0: u32, live: u32) {
    if (thread < CHUNK) {
        let e = aux.params.gate.offset + s.batch * aux.params.gate.batch + head * aux.params.gate.head
            + token_at(s, t0 + min(thread, live - 1u)) * aux.params.gate.seq;
        sh_gate[thread] = select(0.0, gate[e], thread < live);
    }
    workgroupBarrier();   // all gates are there, and the previous chunk's sums have been read
    if (thread <= CHUNK) {
        var sum = 0.0;
        for (var n = 0u; n < thread; n++) {
            sum += sh_gate[n];
        }
        sh_decay[thread] = select(sum + sh_gate[min(thread, CHUNK - 1u)] * aux.params.forward, sum, thread == CHUNK);
    }
    workgroupBarrier();   // all sums are there
}

fn decay_at(at: u32, live: u32) -> f32 {
    return sh_decay[at];
}

fn decay_total(live: u32) -> f32 {
    return sh_decay[CHUNK];
}
