// A log decay a token: sums over the tokens of a chunk, in workgroup memory. They start and end at blocks, so that none is the
// difference of sums longer than that.
const SUM_BLOCK: u32 = CHUNK / 4u;

@group(0) @binding(4) var<storage, read_write> dg: array<f32>;
var<workgroup> sh_gate: array<LogDecay, CHUNK>;   // [token]
var<workgroup> sh_head: array<LogDecay, CHUNK>;   // [token]: from the start of its block to it, its own included
var<workgroup> sh_tail: array<f32, CHUNK>;        // [token]: after it, to the end of its block

fn begin_decay(head: u32) {}

fn chunk_decay(s: Segment, head: u32, thread: u32, live: u32) {
    for (var at = thread; at < CHUNK; at += THREADS) {
        sh_gate[at] = select(LogDecay(), gate_of(s, head, token_at(s, min(at, live - 1u))), at < live);
    }
    workgroupBarrier();   // all gates are there
    for (var at = thread; at < CHUNK; at += THREADS) {
        let block = at / SUM_BLOCK * SUM_BLOCK;
        var head = LogDecay();
        for (var n = block; n <= at; n++) {
            head += sh_gate[n];
        }
        var tail = LogDecay();
        for (var n = block + SUM_BLOCK - 1u; n > at; n--) {
            tail += sh_gate[n];
        }
        sh_head[at] = head;
        sh_tail[at] = log_decay(tail);
    }
    workgroupBarrier();   // all sums are there (the tile kernel passes other barriers before it looks, lanes do not)
}

fn block_sum(block: u32) -> f32 {
    return log_decay(sh_head[block * SUM_BLOCK + SUM_BLOCK - 1u]);
}

// From a chunk's start to a token, its own included.
fn decay_from_start(at: u32) -> f32 {
    var sum = log_decay(sh_head[at]);
    for (var block = 0u; block < at / SUM_BLOCK; block++) {
        sum += block_sum(block);
    }
    return sum;
}

// After a token, to the end of the chunk's `live` tokens.
fn decay_to_end(at: u32, live: u32) -> f32 {
    var sum = sh_tail[at];
    for (var block = at / SUM_BLOCK + 1u; block < 4u; block++) {
        sum += block_sum(block);
    }
    return sum;
}

// A token with the sums on both sides of it.
struct Place {
    at: u32,
    head: LogDecay,
    tail: f32,
}

fn place_at(at: u32) -> Place {
    return Place(at, sh_head[at], sh_tail[at]);
}

// After a token, to a later one that is included.
fn decay_between(place: Place, later: Place) -> f32 {
    let first = place.at / SUM_BLOCK;
    let last = later.at / SUM_BLOCK;
    let inner = select(0.0, block_sum(1u), (first < 1u) & (last > 1u)) + select(0.0, block_sum(2u), (first < 2u) & (last > 2u));
    return select(place.tail + inner + log_decay(later.head), log_decay_between(place.head, later.head), first == last);
}

fn decay_total(live: u32) -> f32 {
    return block_sum(0u) + block_sum(1u) + block_sum(2u) + block_sum(3u);
}
