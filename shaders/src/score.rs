//! From a dot product to a score, and from a score to a weight: the options of softmax attention.

use crate::compose::file;
use crate::key::ScoreOptions;

/// How a weight is taken, and the chain from a dot product to a score.
pub(crate) fn score_parts(options: ScoreOptions, slope: bool) -> Vec<String> {
    let mut parts = vec![file(if options.bias { "weight_natural" } else { "weight_log2" }).to_owned()];
    for (on, name) in
        [(options.softcap, "softcap"), (options.alibi, "alibi"), (options.bias, "bias"), (options.mask, "mask")]
    {
        if on {
            parts.push(file(&format!("score_{name}")).to_owned());
        }
    }
    if options.softcap && slope {
        parts.push(file("score_softcap_slope").to_owned());
    }
    parts.push(score(options, slope));
    parts
}

/// The chain from a scaled dot product to a score: softcap, then ALiBi, then bias, then what hides it; with `slope` also how the score
/// moves with the dot product.
fn score(options: ScoreOptions, slope: bool) -> String {
    let mut begin = String::new();
    let mut body = String::from("    var value = dot;\n    var visible = in_range;\n");
    if options.softcap {
        body += "    value = softcapped(value);\n";
    }
    if options.alibi {
        begin += "    begin_alibi(s, head);\n";
        body += "    value += alibi(i, j);\n";
    }
    if options.bias {
        begin += "    begin_bias(s, head);\n";
        body += "    let bits = bias_bits(i, j);\n    value += bitcast<f32>(bits);\n    visible = visible & (bits != 0xff800000u);\n";
    }
    if options.mask {
        begin += "    begin_mask(s, head);\n";
        body += "    visible = visible & mask_bit(i, j);\n";
    }
    let (field, result) = match (slope, options.softcap) {
        (false, _) => ("", ""),
        (true, false) => ("    slope: f32,\n", ", 1.0"),
        // Of what is hidden the product may be NaN.
        (true, true) => ("    slope: f32,\n", ", select(0.0, softcap_slope(dot), visible)"),
    };
    format!(
        "struct Scored {{\n    value: f32,\n    visible: bool,\n{field}}}\n\n\
         fn begin_scores(s: Sequence, head: u32) {{\n{begin}}}\n\n\
         fn score(dot: f32, i: u32, j: u32, in_range: bool) -> Scored {{\n{body}    return Scored(value, visible{result});\n}}\n"
    )
}
