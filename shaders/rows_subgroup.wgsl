// Reductions over the TX invocations of a row by shuffles.
fn row_max(thread: u32, x: vec4<f32>) -> vec4<f32> {
    var all = x;
    //$ for n in 0..TX_LOG2
    all = max(all, subgroupShuffleXor(all, 1u << $nu));
    //$ end
    return all;
}

fn row_sum(thread: u32, x: vec4<f32>) -> vec4<f32> {
    var all = x;
    //$ for n in 0..TX_LOG2
    all += subgroupShuffleXor(all, 1u << $nu);
    //$ end
    return all;
}
