// One workgroup's work: a tile of queries of one head of one sequence, and a part of the value dim.
struct Item {
    live: bool,
    record: u32,
    tile: u32,
    head: u32,    // query head
    split: u32,
}

// The list is in the order that suits the device; `head_block` heads walk it side by side.
fn item_at(workgroup: vec3<u32>, grid: vec3<u32>) -> Item {
    let p = aux.params.first + workgroup.x + workgroup.y * grid.x;
    if (p >= aux.params.last) {
        return Item(false, 0u, 0u, 0u, 0u);
    }
    let split = p % aux.params.splits;
    let q = p / aux.params.splits;
    let block = q / (aux.params.entries * aux.params.head_block);
    let within = q % (aux.params.entries * aux.params.head_block);
    let entry = aux.params.list + 2u * (within / aux.params.head_block);
    let head = aux.params.head_first + block * aux.params.head_block + within % aux.params.head_block;
    return Item(true, aux.words[entry], aux.words[entry + 1u], head, split);
}
