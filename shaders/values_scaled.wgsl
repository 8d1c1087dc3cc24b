// Gradients of outputs in the role of values, over the denominators of their tokens, which weigh what the denominators receive.
fn value_scale(s: Segment, head: u32, token: u32) -> f32 {
    return records[record_at(s, head, token)];
}

fn value_weight(s: Segment, head: u32, token: u32) -> f32 {
    return records[record_at(s, head, token) + 1u];
}

fn chunk_weight(s: Segment, head: u32, t0: u32, tokens: u32) -> f32 {
    var sum = 0.0;
    for (var n = 0u; n < tokens; n++) {
        sum += value_weight(s, head, token_at(s, t0 + n));
    }
    return sum;
}
