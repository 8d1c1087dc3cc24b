// The softmax of a row of scores in place, a workgroup a row. Unseen keys become zero as far as the values' kernel reads.

override THREADS: u32 = 64;

override ROW_TILE: u32 = 1;   // rows for which the values' kernel reads the same keys
override KEY_TILE: u32 = 1;   // keys that it reads at once

@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

var<workgroup> sh_part: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn softmax(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = workgroup.y;
    let row = (workgroup.z * problem.score_rows + i) * problem.score_columns;
    let first = first_key(i);
    let end = end_key(i);

    var top = -3.0e38;
    for (var j = first + thread; j < end; j += THREADS) {
        top = max(top, scores[row + j]);
    }
    sh_part[thread] = top;
    for (var n = THREADS / 2u; n > 0u; n /= 2u) {
        workgroupBarrier();
        if (thread < n) {
            sh_part[thread] = max(sh_part[thread], sh_part[thread + n]);
        }
    }
    workgroupBarrier();
    top = sh_part[0];
    workgroupBarrier();

    var sum = 0.0;
    for (var j = first + thread; j < end; j += THREADS) {
        sum += exp(scores[row + j] - top);
    }
    sh_part[thread] = sum;
    for (var n = THREADS / 2u; n > 0u; n /= 2u) {
        workgroupBarrier();
        if (thread < n) {
            sh_part[thread] += sh_part[thread + n];
        }
    }
    workgroupBarrier();
    let share = 1.0 / sh_part[0];

    let tile = i / ROW_TILE * ROW_TILE;
    let read_first = first_key(tile) / KEY_TILE * KEY_TILE;
    let read_end = (end_key(min(tile + ROW_TILE, problem.queries) - 1u) + KEY_TILE - 1u) / KEY_TILE * KEY_TILE;
    for (var j = read_first + thread; j < read_end; j += THREADS) {
        let weight = exp(scores[row + j] - top) * share;
        scores[row + j] = select(0.0, weight, j >= first && j < end);
    }
}
