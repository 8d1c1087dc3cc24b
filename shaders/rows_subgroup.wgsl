// Reductions over the TX invocations of a row by shuffles. Rows follow the subgroup, whatever its actual size: TX divides it.
struct Invocation {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

fn thread_index(invocation: Invocation) -> u32 {
    return invocation.subgroup * invocation.size + invocation.lane;
}

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
