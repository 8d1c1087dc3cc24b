// The packed state of BASED, f32: one row for each u_i u_j, i <= j, of u = [1, k], in the order of (i, j), which is that of 1, k_i,
// k_i k_j; columns are the values, then the tokens that were added. Moments are not scaled: readers scale, and count i < j twice.
fn feature_row(i: u32, j: u32) -> u32 {
    return i * (2u * aux.params.head_dim + 1u - i) / 2u + j;
}
