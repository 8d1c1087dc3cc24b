// The f32 rate: chains of multiply-adds, each of which waits for nothing but its own last step. Which number of chains fills a
// device best differs, so there are several; the best is the ceiling. Twelve are for the LLVM of Mesa 22.3, which from thirteen on does
// the steps of a chain one after the other, so that the CPU waits for each. An invocation has four times FOURS.

struct Work {
    steps: u32,   // from a storage buffer: some drivers compile anew for each value of a uniform that bounds a loop
    factor: f32,
    addend: f32,
}

@group(0) @binding(0) var<storage, read> work: Work;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;   // one an invocation, so that nothing is optimised away

const APART = vec4<f32>(0.0, 0.25, 0.5, 0.75);   // no two chains are equal

@compute @workgroup_size(64)
fn vec4s(@builtin(global_invocation_id) id: vec3<u32>) {
    let steps = work.steps;   // not in the loop: a load a turn would be measured too
    let start = f32(id.x & 7u);
    let m = vec4<f32>(work.factor);
    let c = vec4<f32>(work.addend);
    //$ for n in 0..FOURS
    var a_$n = start + $n.0 + APART;
    //$ end
    for (var i = 0u; i < steps; i++) {
        //$ for s in 0..8
        //$ for n in 0..FOURS
        a_$n = fma(a_$n, m, c);
        //$ end
        //$ end
    }
    var sum = vec4<f32>();
    //$ for n in 0..FOURS
    sum += a_$n;
    //$ end
    sums[id.x] = dot(sum, vec4<f32>(1.0));
}

@compute @workgroup_size(64)
fn f32s(@builtin(global_invocation_id) id: vec3<u32>) {
    let steps = work.steps;   // not in the loop: a load a turn would be measured too
    let start = f32(id.x & 7u);
    let m = work.factor;
    let c = work.addend;
    //$ for n in 0..FOURS
    var a_$n = start + $n.0 + APART.x;
    var b_$n = start + $n.0 + APART.y;
    var c_$n = start + $n.0 + APART.z;
    var d_$n = start + $n.0 + APART.w;
    //$ end
    for (var i = 0u; i < steps; i++) {
        //$ for s in 0..8
        //$ for n in 0..FOURS
        a_$n = fma(a_$n, m, c);
        b_$n = fma(b_$n, m, c);
        c_$n = fma(c_$n, m, c);
        d_$n = fma(d_$n, m, c);
        //$ end
        //$ end
    }
    var sum = 0.0;
    //$ for n in 0..FOURS
    sum += a_$n + b_$n + c_$n + d_$n;
    //$ end
    sums[id.x] = sum;
}
