// An invocation by its place in its subgroup, whatever the actual size, so that neighbours share one.
struct Invocation {
    subgroup: u32,
    size: u32,
    lane: u32,
}

fn thread_index(invocation: Invocation) -> u32 {
    return invocation.subgroup * invocation.size + invocation.lane;
}
