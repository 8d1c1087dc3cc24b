// New keys, or values, go to their places in the pages of a cache: an invocation for each vec4.
@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = (workgroup.x + workgroup.y * grid.x) * THREADS + thread;
    let chunk = at % aux.params.head_chunks;
    let row = new_row(at / aux.params.head_chunks);
    if (row.live) {
        store_out(row.place, chunk, load_k(source_row(row), chunk));
    }
}
