// What one dispatch of a linear-attention kernel is told, all in the one buffer `aux` (words of u32).

// Where states [item, heads, key dim, value dim] lie in their binding, f32. An item is a sequence, or a segment of one.
struct StateView {
    offset: u32,
    item: u32,
    head: u32,
    row: u32,
    column: u32,
}

struct Params {
    first: u32,          // linear index of this dispatch's first workgroup
    last: u32,           // one past its last workgroup
    head_first: u32,     // first head of this dispatch
    heads: u32,          // heads of this dispatch
    splits: u32,         // workgroups that share a segment, each with its own part of the value dim

    head_dim: u32,
    value_dim: u32,
    head_chunks: u32,    // head dim in vec4, rounded up
    value_chunks: u32,   // value dim in vec4, rounded up
    state_rows: u32,     // rows of a state

    // Tokens are walked forward (step 1), or backward (step -1) with the decay of a token after it instead of before it.
    step: u32,
    forward: f32,        // 1 or 0

    q: View,
    k: View,
    v: View,
    out: View,
    gate: View,          // dim is unused
    state0: StateView,   // of the gradient of the decay: where that lies
    state: StateView,

    score_scale: f32,    // of the products of queries and keys
    read_scale: f32,     // of what a query reads from the state
    write_scale: f32,    // of what a key writes to the state
    eps: f32,            // added to the denominator, of BASED
    normalize: u32,      // whether there is a denominator, of BASED

    segments: u32,       // word offsets of the sections of aux.words
    walks: u32,
    slopes: u32,
    totals: u32,         // of the segments' states: where the log decay of whole segments goes (or their part of a slope's gradient),
                         // [segment, heads]

    g: View,             // of gradients of BASED: what meets the values
    block: u32,          // of gradients of BASED: the first vec4 column of the value dim of this pass
}

struct Aux {
    params: Params,
    words: array<u32>,
}

@group(0) @binding(7) var<storage, read> aux: Aux;

// A stretch of tokens of one sequence that is walked in one go.
struct Segment {
    batch: u32,
    origin: u32,   // its first token, in the order of the walk
    tokens: u32,
    keys: u32,     // those of its tokens that are keys too, the first ones; all but for BASED
    state0: u32,   // item of the state it starts from, NONE for zero
    state: u32,    // item of the state it ends in, NONE (of BASED) for none
}

// The segments of one sequence.
struct Walk {
    first: u32,
    segments: u32,
    state0: u32,
    state: u32,
}

const NONE: u32 = 0xffffffffu;

fn segment_at(index: u32) -> Segment {
    let w = aux.params.segments + index * 6u;
    return Segment(aux.words[w], aux.words[w + 1u], aux.words[w + 2u], aux.words[w + 3u], aux.words[w + 4u], aux.words[w + 5u]);
}

// One workgroup's work: a segment of a head, and a part of the value dim.
struct Item {
    live: bool,
    segment: u32,
    head: u32,
    split: u32,
}

fn item_at(workgroup: vec3<u32>, grid: vec3<u32>) -> Item {
    let p = aux.params.first + workgroup.x + workgroup.y * grid.x;
    let q = p / aux.params.splits;
    return Item(p < aux.params.last, q / aux.params.heads, aux.params.head_first + q % aux.params.heads, p % aux.params.splits);
}

// The token at place `at` of a segment's walk.
fn token_at(s: Segment, at: u32) -> u32 {
    return s.origin + at * aux.params.step;
}
