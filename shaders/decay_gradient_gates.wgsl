// A log decay a token: sums over the tokens of a chunk, in workgroup memory. They start and end at blocks, so that none is the
// difference of sums longer than that.
@group(0) @binding(4) var<storage, read_write> dg: array<f32>;
@group(0) @binding(6) var<storage, read> gate: array<f32>;
var<workgroup> sh_gate: array<f32, CHUNK>;   // [token]
var<workgroup> sh_head: array<f32, CHUNK>;   // [token]: from the start of its block to it, its own included
var<workgroup> sh_tail: array<f32, CHUNK>;   // [token]: after it, to the end of its block

fn begin_decay(head: u32) {}

fn chunk_decay(s: Segment, head: u32, thread: u32, live: u32) {
    for (var at = thread; at < CHUNK; at += THREADS) {
        let e = aux.params.gate.offset + s.batch * aux.params.gate.batch + head * aux.params.gate.head
            + token_at(s, min(at, live - 1u)) * aux.params.gate.seq;
        sh_gate[at] = select(0.0, gate[e], at < live);
    }
    workgroupBarrier();   // all gates are there
    for (var at = thread; at < CHUNK; at += THREADS) {
        let block = at / BLOCK * BLOCK;
        var head = 0.0;
        for (var n = block; n <= at; n++) {
            head += sh_gate[n];
        }
        var tail = 0.0;
        for (var n = block + BLOCK - 1u; n > at; n--) {
            tail += sh_gate[n];
        }
        sh_head[at] = head;
        sh_tail[at] = tail;
    }
    workgroupBarrier();   // all sums are there
}

// From a chunk's start to a token, its own included.
fn decay_from_start(at: u32) -> f32 {
    return select(0.0, sh_head[BLOCK - 1u], at >= BLOCK) + sh_head[at];
}

// After a token, to the end of the chunk's `live` tokens.
fn decay_to_end(at: u32, live: u32) -> f32 {
    return sh_tail[at] + select(0.0, sh_head[CHUNK - 1u], at < BLOCK);
}

// A token with the sums on both sides of it.
struct Place {
    at: u32,
    head: f32,
    tail: f32,
}

fn place_at(at: u32) -> Place {
    return Place(at, sh_head[at], sh_tail[at]);
}

// After a token, to a later one that is included.
fn decay_between(place: Place, later: Place) -> f32 {
    let inside = place.at / BLOCK == later.at / BLOCK;
    return select(place.tail + later.head, min(later.head - place.head, 0.0), inside);
}

fn decay_total(live: u32) -> f32 {
    return sh_head[BLOCK - 1u] + sh_head[CHUNK - 1u];
}
