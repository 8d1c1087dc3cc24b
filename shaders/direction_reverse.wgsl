// Keys look at the queries after them, whose moments are the gradient of the state but for this share of those of each square.
const SQUARE: f32 = 0.5;

// The tokens of a segment that are added.
fn added_tokens(s: Segment) -> u32 {
    return s.tokens;
}

// Whether the token at place `at` of a walk has an output other than zero: keys are its last ones.
fn is_row(s: Segment, at: u32) -> bool {
    return at + s.keys >= s.tokens;
}
