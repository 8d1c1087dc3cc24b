// From the states that segments end in by themselves to those that they start from, in place: one invocation for each number of a
// state walks the segments of its sequence in order.
//
//   S_0 = state0,  S_{n+1} = exp(decay of segment n) S_n + (what segment n adds)
//
// An item's segment is here a walk.

@group(0) @binding(3) var<storage, read_write> segment_states: array<f32>;   // [segment, head, key dim, value dim], then totals

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = item_at(workgroup, grid);
    let size = aux.params.head_dim * aux.params.value_dim;
    let e = item.split * THREADS + thread;
    if (!item.live | (e >= size)) {
        return;
    }
    let head = item.head;
    begin_decay(head);
    let w = aux.params.walks + item.segment * 4u;
    let walk = Walk(aux.words[w], aux.words[w + 1u], aux.words[w + 2u], aux.words[w + 3u]);
    var sum = 0.0;
    if (walk.state0 != NONE) {
        sum = first_state(walk, head, e);
    }
    for (var n = walk.first; n < walk.first + walk.segments; n++) {
        let at = (n * aux.params.heads + head - aux.params.head_first) * size + e;
        let added = segment_states[at];
        segment_states[at] = sum;
        sum = sum * exp(segment_decay(n, head)) + added;
    }
    //$ if STATE
    let row = e / aux.params.value_dim;
    let column = e % aux.params.value_dim;
    state[aux.params.state.offset + walk.state * aux.params.state.item + head * aux.params.state.head
        + row * aux.params.state.row + column * aux.params.state.column] = sum;
    //$ end
}
