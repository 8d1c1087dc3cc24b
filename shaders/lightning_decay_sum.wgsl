// The gradient of each head's slope: minus the sum over all tokens of the gradients of their log decays, of which the pass over chunks
// has left one sum a chunk behind the states. One workgroup a head; an item's segment is here a walk over chunks, the first of several
// where it starts from NONE. The order of the sums is fixed.

@group(0) @binding(4) var<storage, read_write> dslopes: array<f32>;
@group(0) @binding(5) var<storage, read> state: array<f32>;

var<workgroup> sh_sum: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_at(workgroup, grid);
    if (!item.live) {
        return;
    }
    let head = item.head;
    let w = aux.params.walks + item.segment * 4u;
    let walk = Walk(aux.words[w], aux.words[w + 1u], aux.words[w + 2u], aux.words[w + 3u]);
    var sum = 0.0;
    for (var n = thread; n < walk.segments; n += THREADS) {
        sum += state[aux.params.totals + (walk.first + n) * aux.params.heads + head - aux.params.head_first];
    }
    sh_sum[thread] = sum;
    workgroupBarrier();   // all parts are there
    if (thread == 0u) {
        let at = aux.params.state0.offset + head * aux.params.state0.head;
        var total = 0.0;
        if (walk.state0 != NONE) {
            total = dslopes[at];
        }
        for (var n = 0u; n < THREADS; n++) {
            total -= sh_sum[n];
        }
        dslopes[at] = total;
    }
}
