// The unfused baseline of linear attention: token by token, one workgroup a head, the state in a storage buffer. A dispatch takes
// `count` tokens from `first` on, since some drivers end long loops.

struct Problem {
    heads: u32,
    tokens: u32,
    key_dim: u32,
    value_dim: u32,
    first: u32,
    count: u32,
    scale: f32,
    slopes: array<f32>,
}

@group(0) @binding(0) var<storage, read> problem: Problem;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> state: array<f32>;   // [batch head, key dim, value dim]
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn scan(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let plane = workgroup.x;   // batch entry and head
    let decay = exp(-problem.slopes[plane % problem.heads]);
    for (var e = thread; e < problem.value_dim; e += 64u) {
        let column = plane * problem.key_dim * problem.value_dim + e;
        for (var t = problem.first; t < problem.first + problem.count; t++) {
            let row = (plane * problem.tokens + t) * problem.key_dim;
            let place = (plane * problem.tokens + t) * problem.value_dim + e;
            let value = v[place];
            var sum = 0.0;
            for (var d = 0u; d < problem.key_dim; d++) {
                let at = column + d * problem.value_dim;
                let x = select(0.0, state[at] * decay, t > 0u) + k[row + d] * value;
                state[at] = x;
                sum += q[row + d] * x;
            }
            out[place] = sum * problem.scale;
        }
    }
}
