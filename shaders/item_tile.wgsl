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
    // One way out: FXC takes what a function returns early for uninitialised.
    let p = aux.params.first + workgroup.x + workgroup.y * grid.x;
    let q = p / aux.params.splits;
    let block = q / (aux.params.entries * aux.params.head_block);
    let within = q % (aux.params.entries * aux.params.head_block);
    let entry = aux.params.list + 2u * (within / aux.params.head_block);
    var item = Item();
    if (p < aux.params.last) {
        item = Item(
            true,
            aux.words[entry],
            aux.words[entry + 1u],
            aux.params.head_first + block * aux.params.head_block + within % aux.params.head_block,
            p % aux.params.splits,
        );
    }
    return item;
}
