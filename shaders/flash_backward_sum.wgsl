// The gradient of a number that a query head has, its sink or its ALiBi slope: the sum of the parts in its queries' records. One
// workgroup a head; the order of the sums is fixed.

@group(0) @binding(3) var<storage, read_write> $t: array<f32>;

var<workgroup> sh_sum: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let place = workgroup.x + workgroup.y * grid.x;
    if (place >= aux.params.heads) {
        return;
    }
    let head = aux.params.head_first + place;
    var sum = 0.0;
    for (var n = thread; n < aux.params.batches * aux.params.queries; n += THREADS) {
        let batch = aux.params.batch_first + n / aux.params.queries;
        let at = aux.params.rows.offset + batch * aux.params.rows.batch + head * aux.params.rows.head
            + n % aux.params.queries * aux.params.rows.seq;
        sum += share(rows[at], head);
    }
    sh_sum[thread] = sum;
    workgroupBarrier();   // all parts are there
    if (thread == 0u) {
        let at = aux.params.dv.offset + head * aux.params.dv.head;
        var total = 0.0;
        if (aux.params.accumulate == 1u) {
            total = $t[at];
        }
        for (var n = 0u; n < THREADS; n++) {
            total += sh_sum[n];
        }
        $t[at] = total;
    }
}
