// One token of linear attention with decay, for each (batch entry, head): the state is read and written once.
//
//   S <- exp(g) S + k v^T,  out = scale q S
//
// A workgroup of THREADS invocations owns COLUMNS vec4 columns of the value dim; the invocations of a column share its rows.

const ROW_GROUPS: u32 = THREADS / COLUMNS;
var<workgroup> sh_out: array<vec4<f32>, THREADS>;   // [row group, column]

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
    let s = segment_at(item.segment);
    let head = item.head;
    let column = item.split * COLUMNS + thread % COLUMNS;
    let q_row = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let k_row = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v = load_v(aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head, column);
    let keep = exp(token_decay(s, head));
    var o = vec4<f32>();
    for (var c = thread / COLUMNS; c < aux.params.head_chunks; c += ROW_GROUPS) {
        let q = load_q(q_row, c);
        let k = load_k(k_row, c);
        //$ for d in 0..4
        {
            let x = load_state(s, head, c * 4u + $du, column) * keep + k[$d] * v;
            store_state(s, head, c * 4u + $du, column, x);
            o += q[$d] * x;
        }
        //$ end
    }
    sh_out[thread] = o;
    workgroupBarrier();   // all parts are there
    if (thread < COLUMNS) {
        for (var n = 1u; n < ROW_GROUPS; n++) {
            o += sh_out[n * COLUMNS + thread];
        }
        store_out(aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head, column, o * aux.params.read_scale);
    }
}
