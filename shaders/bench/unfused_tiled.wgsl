// The products as a good matrix multiplication does them: blocks in registers, each operand loaded once a block.
//
// A workgroup of TX x TY invocations owns a tile of TY * ROWS queries; for the scores, of TX * 4 * GROUPS keys too. An invocation
// owns ROWS rows times GROUPS runs of 4 keys; for the values, ROWS rows times 2 vec4 columns.

const TILE_Q: u32 = TY * ROWS;
const TILE_K: u32 = TX * 4u * GROUPS;

override VALUE_TX: u32 = 8;   // invocations along the value dim

@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> scores: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(TX * TY)
fn multiply_keys(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tx = thread % TX;
    let ty = thread / TX;
    let i0 = workgroup.y * TILE_Q;
    let j0 = workgroup.x * TILE_K;
    let plane = workgroup.z;
    let last = problem.queries - 1u;
    if (j0 >= end_key(min(i0 + TILE_Q - 1u, last)) || j0 + TILE_K <= first_key(i0)) {
        return;
    }
    let q_plane = plane * problem.queries;
    let k_plane = plane / problem.group * problem.keys;
    //$ for r in 0..ROWS
    let i_$r = i0 + ty * ROWS + $ru;
    let q_$r = (q_plane + min(i_$r, last)) * problem.head_chunks;
    //$ for g in 0..GROUPS
    var s_$r_$g = vec4<f32>();
    //$ end
    //$ end
    //$ for g in 0..GROUPS
    let j_$g = j0 + ($gu * TX + tx) * 4u;
    //$ for n in 0..4
    let k_$g_$n = (k_plane + min(j_$g + $nu, problem.keys - 1u)) * problem.head_chunks;
    //$ end
    //$ end
    for (var c = 0u; c < problem.head_chunks; c++) {
        //$ for r in 0..ROWS
        let a_$r = q[q_$r + c];
        //$ end
        //$ for g in 0..GROUPS
        //$ for n in 0..4
        {
            let b = k[k_$g_$n + c];
            //$ for r in 0..ROWS
            s_$r_$g[$n] += dot(a_$r, b);
            //$ end
        }
        //$ end
        //$ end
    }
    //$ for r in 0..ROWS
    //$ for g in 0..GROUPS
    scores[((plane * problem.score_rows + i_$r) * problem.score_columns + j_$g) / 4u] = vec4<f32>(
        score(s_$r_$g.x, plane, i_$r, j_$g),
        score(s_$r_$g.y, plane, i_$r, j_$g + 1u),
        score(s_$r_$g.z, plane, i_$r, j_$g + 2u),
        score(s_$r_$g.w, plane, i_$r, j_$g + 3u),
    );
    //$ end
    //$ end
}

@compute @workgroup_size(VALUE_TX * TY)
fn multiply_values(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tx = thread % VALUE_TX;
    let ty = thread / VALUE_TX;
    let i0 = workgroup.y * TILE_Q;
    let plane = workgroup.z;
    let column = (workgroup.x * VALUE_TX + tx) * 2u;
    let row = plane * problem.score_rows + i0 + ty * ROWS;
    let columns = problem.score_columns / 4u;
    let v_plane = plane / problem.group * problem.keys;
    //$ for r in 0..ROWS
    var o_$r_0 = vec4<f32>();
    var o_$r_1 = vec4<f32>();
    //$ end
    let end = end_key(min(i0 + TILE_Q, problem.queries) - 1u);
    for (var j = first_key(i0) / 4u; j * 4u < end; j++) {
        //$ for r in 0..ROWS
        let p_$r = scores[(row + $ru) * columns + j];
        //$ end
        //$ for n in 0..4
        {
            let at = (v_plane + min(j * 4u + $nu, problem.keys - 1u)) * problem.value_chunks + column;
            let v_0 = v[at];
            let v_1 = v[at + 1u];
            //$ for r in 0..ROWS
            o_$r_0 += p_$r[$n] * v_0;
            o_$r_1 += p_$r[$n] * v_1;
            //$ end
        }
        //$ end
    }
    //$ for r in 0..ROWS
    out[(row + $ru) * problem.value_chunks + column] = o_$r_0;
    out[(row + $ru) * problem.value_chunks + column + 1u] = o_$r_1;
    //$ end
}
