// Two vec4 of $t, of one row.
struct Pair_$t {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn load_pair_$t(row: u32, chunk: u32) -> Pair_$t {
    return Pair_$t(load_$t(row, chunk), load_$t(row, chunk + 1u));
}
