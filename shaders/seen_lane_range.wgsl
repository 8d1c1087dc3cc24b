// Where only ranges hide keys: some row sees every key that is loaded, none needs zeroing.
fn some_row_sees(seen: u32, lane: u32) -> bool {
    return true;
}

fn kept(v: vec4<f32>, keep: bool) -> vec4<f32> {
    return v;
}
