// Where a tensor [batch, heads, seq, dim] lies in its binding. Strides count the storage units of their tensor (see the load files);
// offsets wrap: a binding may start past element 0.
struct View {
    offset: u32,
    batch: u32,
    head: u32,
    seq: u32,
    dim: u32,
}
