// The units (i, j) of a row of the packed state; of the last one for all beyond it.
struct Pair {
    i: u32,
    j: u32,
}

fn pair_of(row: u32) -> Pair {
    var i = 0u;
    var rest = min(row, aux.params.state_rows - 1u);
    while (rest > aux.params.head_dim - i) {
        rest -= aux.params.head_dim + 1u - i;
        i += 1u;
    }
    return Pair(i, i + rest);
}
