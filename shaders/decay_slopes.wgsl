// A constant decay a head.
var<private> slope: f32;

fn begin_decay(head: u32) {
    slope = bitcast<f32>(aux.words[aux.params.slopes + head]);
}
