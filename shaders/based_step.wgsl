// One token of BASED's linear attention, for each (batch entry, head): the state is read and written once.
//
//   S_ij <- S_ij + u_i(k) u_j(k) [v, 1],  out = sum_ij c_ij u_i(q) u_j(q) S_ij, its values over (its weight + eps)
//
// A workgroup owns a state: numbers that follow each other in a row belong to neighbouring invocations, the weights to the one after
// the last value. Where a row leaves room, groups of invocations share the rows.

var<workgroup> sh_q: array<f32, UNITS>;
var<workgroup> sh_k: array<f32, UNITS>;
var<workgroup> sh_qq: array<f32, FEATURE_ROWS>;          // [row]: c_ij u_i(q) u_j(q)
var<workgroup> sh_kk: array<f32, FEATURE_ROWS>;          // [row]: u_i(k) u_j(k)
var<workgroup> sh_v: array<f32, 4u * VALUES + 4u>;       // [column], 1 after the last
var<workgroup> sh_out: array<f32, 4u * VALUES + 1u>;     // [group, column]

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
    let q_row = aux.params.q.offset + s.batch * aux.params.q.batch + head * aux.params.q.head;
    let k_row = aux.params.k.offset + s.batch * aux.params.k.batch + head * aux.params.k.head;
    let v_row = aux.params.v.offset + s.batch * aux.params.v.batch + head * aux.params.v.head;
    let columns = aux.params.value_dim + 1u;

    for (var c = thread; c < aux.params.head_chunks; c += THREADS) {
        let q = load_q(q_row, c) * aux.params.read_scale;
        let k = load_k(k_row, c);
        //$ for d in 0..4
        sh_q[4u * c + 1u + $du] = q[$d];
        sh_k[4u * c + 1u + $du] = k[$d];
        //$ end
    }
    if (thread == 0u) {
        sh_q[0] = 1.0;
        sh_k[0] = 1.0;
    }
    for (var c = thread; c <= aux.params.value_dim / 4u; c += THREADS) {
        let v = load_v(v_row, c);
        //$ for d in 0..4
        sh_v[4u * c + $du] = select(v[$d], 1.0, 4u * c + $du == aux.params.value_dim);
        //$ end
    }
    workgroupBarrier();   // the token is there
    for (var row = thread; row < aux.params.state_rows; row += THREADS) {
        let pair = pair_of(row);
        let half = select(1.0, 0.5, (pair.i == pair.j) & (pair.i > 0u));
        sh_qq[row] = half * sh_q[pair.i] * sh_q[pair.j];
        sh_kk[row] = sh_k[pair.i] * sh_k[pair.j];
    }
    workgroupBarrier();   // so are its features

    let width = min(columns, THREADS);
    let groups = THREADS / width;
    let group = thread / width;
    if (group < groups) {
        for (var column = thread % width; column < columns; column += width) {
            let v = sh_v[column];
            var o = 0.0;
            for (var row = group; row < aux.params.state_rows; row += groups) {
                let x = load_number(s, head, row, column) + sh_kk[row] * v;
                store_number(s, head, row, column, x);
                o += sh_qq[row] * x;
            }
            sh_out[group * columns + column] = o;
        }
    }
    workgroupBarrier();   // all parts are there
    for (var c = thread; c < aux.params.value_chunks; c += THREADS) {
        var o = vec4<f32>();
        var total = 0.0;
        for (var g = 0u; g < groups; g++) {
            let at = g * columns + 4u * c;
            let end = g * columns + aux.params.value_dim;
            o += vec4<f32>(sh_out[at], sh_out[min(at + 1u, end)], sh_out[min(at + 2u, end)], sh_out[min(at + 3u, end)]);
            total += sh_out[end];
        }
        store_out(aux.params.out.offset + s.batch * aux.params.out.batch + head * aux.params.out.head, c, o * finish(total));
    }
}
