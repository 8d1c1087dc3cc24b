// An invocation by its place in its subgroup, whatever the actual size, so that neighbours share one.
struct Invocation {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

fn thread_index(invocation: Invocation) -> u32 {
    return invocation.subgroup * invocation.size + invocation.lane;
}
