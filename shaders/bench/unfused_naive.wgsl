// The products as written in a textbook: an invocation a score, an invocation a vec4 of the output.

@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn multiply_keys(@builtin(global_invocation_id) id: vec3<u32>) {
    let j = id.x;
    let i = id.y;
    let plane = id.z;
    if (j < first_key(i) || j >= end_key(i)) {
        return;
    }
    let q_row = (plane * problem.queries + i) * problem.head_chunks;
    let k_row = (plane / problem.group * problem.keys + j) * problem.head_chunks;
    var sum = 0.0;
    for (var c = 0u; c < problem.head_chunks; c++) {
        sum += dot(q[q_row + c], k[k_row + c]);
    }
    scores[(plane * problem.score_rows + i) * problem.score_columns + j] = score(sum, plane, i, j);
}

@compute @workgroup_size(64)
fn multiply_values(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x / problem.value_chunks;
    let c = id.x % problem.value_chunks;
    let plane = id.z;
    if (i >= problem.queries) {
        return;
    }
    let row = plane * problem.score_rows + i;
    let v_plane = plane / problem.group * problem.keys;
    let end = end_key(i);
    var sum = vec4<f32>();
    for (var j = first_key(i); j < end; j++) {
        sum += scores[row * problem.score_columns + j] * v[(v_plane + j) * problem.value_chunks + c];
    }
    out[row * problem.value_chunks + c] = sum;
}
