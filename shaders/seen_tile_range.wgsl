// Which keys some row of the tile sees, where only ranges mask: those below the tile's end, which loads and loops respect.
fn clear_seen(thread: u32) {}

fn mark_seen(key: u32, seen: bool) {}

fn key_seen(key: u32) -> bool {
    return true;
}
