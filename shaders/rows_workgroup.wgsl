// Reductions over the TX invocations of a row, four rows at a time, through workgroup memory. A barrier of the kernel must lie between
// two of them, so that all parts have been read before the next are written.
var<workgroup> sh_rows: array<vec4<f32>, THREADS>;

fn row_max(thread: u32, x: vec4<f32>) -> vec4<f32> {
    sh_rows[thread] = x;
    workgroupBarrier();   // all parts are there
    let base = thread - thread % TX;
    var all = sh_rows[base];
    //$ for n in 1..TX
    all = max(all, sh_rows[base + $nu]);
    //$ end
    return all;
}

fn row_sum(thread: u32, x: vec4<f32>) -> vec4<f32> {
    sh_rows[thread] = x;
    workgroupBarrier();   // all parts are there
    let base = thread - thread % TX;
    var all = sh_rows[base];
    //$ for n in 1..TX
    all += sh_rows[base + $nu];
    //$ end
    return all;
}
