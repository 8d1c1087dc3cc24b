// Queries look back at keys. The packed state is the moments themselves.
const SQUARE: f32 = 1.0;

// The tokens of a segment that are added, its first ones.
fn added_tokens(s: Segment) -> u32 {
    return s.keys;
}

// Whether the token at place `at` of a walk has an output other than zero.
fn is_row(s: Segment, at: u32) -> bool {
    return true;
}
