// ALiBi (arXiv 2108.12409): a penalty that grows with the distance between a query and a key.
var<private> alibi_slope: f32;
var<private> alibi_diagonal: i32;

fn begin_alibi(s: Sequence, head: u32) {
    alibi_slope = bitcast<f32>(aux.words[aux.params.slopes + head]);
    alibi_diagonal = s.diagonal;
}

fn distance_of(i: u32, j: u32) -> f32 {
    return f32(abs(i32(i) + alibi_diagonal - i32(j)));
}

fn alibi(i: u32, j: u32) -> f32 {
    return -alibi_slope * distance_of(i, j);
}
