// What one dispatch of softmax attention is told: sizes, strides, ranges and per-head numbers, all in the one buffer `aux` (words of
// u32).

// Where a tensor [batch, heads, queries, keys] lies in its binding.
struct ScoreView {
    offset: u32,
    batch: u32,
    head: u32,
    query: u32,
    key: u32,
}

struct Params {
    first: u32,          // linear index of this dispatch's first workgroup
    last: u32,           // one past its last workgroup
    entries: u32,        // work list entries: (record, tile) pairs
    head_first: u32,     // first query head of this dispatch
    heads: u32,          // query heads of this dispatch
    head_block: u32,     // heads that run side by side; divides heads
    group: u32,          // query heads per key/value head
    splits: u32,         // workgroups that share one query tile, each with its own part of the value dim

    head_dim: u32,
    value_dim: u32,
    head_chunks: u32,    // head dim in vec4, rounded up
    value_chunks: u32,   // value dim in vec4, rounded up

    q: View,
    k: View,
    v: View,
    out: View,
    lse: View,             // dim is unused
    bias: ScoreView,
    mask: ScoreView,       // in words of 32 keys; key is unused

    score_scale: f32,    // turns q.k into the unit the kernel's weights are taken in
    softcap: f32,        // the cap in that unit

    records: u32,        // word offsets of the sections of aux.words
    slopes: u32,
    sinks: u32,
    list: u32,

    partials: u32,       // of keys in splits: rows of partial results of a key/value head
    tables: u32,         // of keys in pages: word offset of the sequences' page tables
    page_log2: u32,      // and the tokens of a page

    // Of the backward pass alone.
    grad_out: View,        // where it lies beside the records: in their vec4
    grad_lse: View,        // dim is unused
    rows: View,            // records of queries, in vec4; dim is unused
    dq: View,
    dk: View,
    dv: View,
    dbias: ScoreView,
    gradient_scale: f32, // turns sums over keys or queries into gradients of q and k
    lse_scale: f32,      // turns natural logarithms into the unit of weights
    batch_first: u32,    // batch entries of this dispatch, their queries and keys
    batches: u32,
    queries: u32,
    keys: u32,
    shared_batches: u32, // batch entries and heads that share an entry of dbias
    shared_heads: u32,
    accumulate: u32,     // 1 where an earlier dispatch has left a part of the sum
}

struct Aux {
    params: Params,
    words: array<u32>,
}

@group(0) @binding(7) var<storage, read> aux: Aux;

// One sequence: where it lies and which keys its queries may see. Query i sees keys [lo(i), hi(i)).
struct Sequence {
    batch: u32,
    q_start: u32,
    queries: u32,
    k_start: u32,
    keys: u32,
    lo_shift: i32,   // lo(i) = max(0, i + lo_shift)
    hi_shift: i32,   // hi(i) = clamp(i + hi_shift, 0, keys)
    diagonal: i32,   // keys - queries: where query 0's own position lies among the keys
    stored: u32,     // keys that lie in memory; the first `keys` of them exist
}

fn sequence_at(record: u32) -> Sequence {
    let w = aux.params.records + record * 9u;
    return Sequence(
        $work[w], $work[w + 1u], $work[w + 2u], $work[w + 3u], $work[w + 4u],
        bitcast<i32>($work[w + 5u]), bitcast<i32>($work[w + 6u]), bitcast<i32>($work[w + 7u]),
        $work[w + 8u],
    );
}

fn first_key(s: Sequence, i: u32) -> u32 {
    return u32(max(i32(i) + s.lo_shift, 0));
}

fn end_key(s: Sequence, i: u32) -> u32 {
    return u32(clamp(i32(i) + s.hi_shift, 0, i32(s.keys)));
}

// The identity of max over finite numbers: where a running maximum starts. It never stands for a masked score.
fn lowest() -> f32 {
    return bitcast<f32>(0xff7fffffu);
}
