// New keys, or values, go to their places in the pages of a cache of 8-bit numbers: an invocation for each row, whose largest number
// becomes 127. What its numbers are multiplied by follows them.
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = new_row((workgroup.x + workgroup.y * grid.x) * THREADS + thread);
    if (!row.live) {
        return;
    }
    let source = source_row(row);
    var largest = vec4<f32>();
    for (var c = 0u; c < aux.params.head_chunks; c++) {
        largest = max(largest, abs(load_k(source, c)));
    }
    let top = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let inverse = select(0.0, 127.0 / top, top > 0.0);
    for (var c = 0u; c < aux.params.head_chunks; c++) {
        let x = clamp(round(load_k(source, c) * inverse), vec4<f32>(-127.0), vec4<f32>(127.0));
        out[row.place + c] = pack4xI8(vec4<i32>(x));
    }
    out[row.place + aux.params.head_chunks] = bitcast<u32>(top / 127.0);
}
