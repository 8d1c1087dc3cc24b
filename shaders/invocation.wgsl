// An invocation by its place in the workgroup.
struct Invocation {
    index: u32,
}

fn thread_index(invocation: Invocation) -> u32 {
    return invocation.index;
}
