// Attention as three kernels, what fusing is measured against. All variants share this: the problem, which keys a query sees, and
// what becomes of a score.
//
//   scores = q k^T;  scores = softmax(scores), in place;  out = scores v
//
// q, k and v are [plane, sequence, dim] where a plane is a (batch entry, head); scores and out have padded rows:
// scores is [plane, score_rows, score_columns], out is [plane, score_rows, value dim].

struct Problem {
    heads: u32,
    group: u32,          // query heads a key/value head
    queries: u32,
    keys: u32,
    head_chunks: u32,    // vec4 in a row of q and k
    value_chunks: u32,   // vec4 in a row of v
    score_rows: u32,
    score_columns: u32,
    left: i32,           // keys seen on both sides of a query's own, inclusive
    right: i32,
    scale: f32,
    softcap: f32,
    bias_batch: u32,     // elements from a batch entry's bias to the next one's, and from a head's
    bias_head: u32,
    slopes: array<f32>,  // one a head
}

override SOFTCAP: bool = false;
override ALIBI: bool = false;
override BIAS: bool = false;

@group(0) @binding(0) var<storage, read> problem: Problem;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> bias: array<f32>;

fn own_key(i: u32) -> i32 {
    return i32(i) + i32(problem.keys) - i32(problem.queries);
}

fn first_key(i: u32) -> u32 {
    return u32(clamp(own_key(i) - problem.left, 0, i32(problem.keys)));
}

fn end_key(i: u32) -> u32 {
    return u32(clamp(own_key(i) + problem.right + 1, 0, i32(problem.keys)));
}

fn score(product: f32, plane: u32, i: u32, j: u32) -> f32 {
    var s = product * problem.scale;
    if (SOFTCAP) {
        s = problem.softcap * tanh(s / problem.softcap);
    }
    let head = plane % problem.heads;
    if (ALIBI) {
        s -= problem.slopes[head] * f32(abs(own_key(i) - i32(j)));
    }
    if (BIAS) {
        let at = plane / problem.heads * problem.bias_batch + head * problem.bias_head;
        s += bias[at + i * problem.keys + j];
    }
    return s;
}
