// As finish.wgsl, with one more logit a head in the sum: a sink, which has no value. It enters once, after all keys.
struct Finish {
    scale: f32,
    m: f32,
    l: f32,
}

fn finish(m: f32, l: f32, head: u32) -> Finish {
    let sink = bitcast<f32>(aux.words[aux.params.sinks + head]);
    let top = max(m, sink);
    let old = weight(m, top);
    let sum = l * old + weight(sink, top);
    return Finish(old / sum, top, sum);
}
