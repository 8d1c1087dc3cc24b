//! Every loop of every kernel ends, whatever the buffers hold: `EngineBuilder::trusted` of wattn promises it to wgpu.

use std::fs;
use std::path::Path;

/// What stands in loops that do not count by a constant, and why they end.
const LOOKED_AT: [(&str, &str); 9] = [
    ("while (rest >= FOURS - a) {", "`rest` is less than the sum of what is taken of it until `a` is FOURS"),
    ("while (rest > aux.params.head_dim - i) {", "likewise: it is clamped to the last of the state's rows"),
    ("while ((i < 4u * FEATURE_FOURS) & ", "`i` goes up"),
    ("; row += own.step) {", "`step` is SIDE at least"),
    ("while (beyond - t > 1u) {", "what lies between them is halved each turn"),
    ("for (var w0 = start; head < heads; w0 += TILE_K) {", "`w0` begins again once for each head"),
    (
        "for (var w0 = start; w0 < end; w0 += TILE_K) {",
        "`w0` begins again only where the line above stands in its place",
    ),
    (
        "for (var column = thread % width; column < columns; column += width) {",
        "`width` is 1 at least, as there are columns",
    ),
    (
        "for (var row = group; row < aux.params.state_rows; row += groups) {",
        "`groups` is 1 at least, as `width` is THREADS at most",
    ),
];

/// What a `for` counts, if it does so by a constant towards a bound and its body leaves the counter alone; else why it does not.
fn counts(header: &str, body: &[&str]) -> Result<(), String> {
    let inner =
        header.strip_prefix("for (var ").and_then(|rest| rest.strip_suffix(") {")).ok_or("not a `for` of one line")?;
    let [start, bound, step] = inner.split("; ").collect::<Vec<_>>()[..] else { return Err("not three parts".into()) };
    let (name, _) = start.split_once(" = ").ok_or("no counter")?;
    let constant = |by: &str| by.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "_ *".contains(c));
    let up = step == format!("{name}++") || step.strip_prefix(&format!("{name} += ")).is_some_and(constant);
    let down = step == format!("{name}--") || step.strip_prefix(&format!("{name} -= ")).is_some_and(constant);
    if bound.contains('|') {
        return Err("conditions joined by `|`".into());
    }
    // Of conditions joined by `&` the first.
    let bound = bound.strip_prefix('(').unwrap_or(bound);
    let below = bound.starts_with(&format!("{name} < ")) || bound.starts_with(&format!("{name} <= "));
    let above = bound.starts_with(&format!("{name} > "));
    if !(up && below || down && above) {
        return Err(format!("`{step}` does not lead out of `{bound}`"));
    }
    match body.iter().find(|line| writes(line, name)) {
        Some(line) => Err(format!("`{}` moves its counter", line.trim())),
        None => Ok(()),
    }
}

/// Whether a line gives a variable another value.
fn writes(line: &str, name: &str) -> bool {
    let assigns = [" = ", " += ", " -= ", "++", "--"];
    line.match_indices(name).any(|(at, _)| {
        let whole =
            !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_.$".contains(c)) && !line[..at].ends_with("let ");
        whole && assigns.iter().any(|assign| line[at + name.len()..].starts_with(assign))
    })
}

/// Whether a line opens a loop of this kind.
fn opens(line: &str, word: &str) -> bool {
    line.strip_prefix(word).is_some_and(|rest| rest.trim_start().starts_with(['(', '{']))
}

/// Whether a `loop` is an `if`: its body's last statement leaves it.
fn leaves(body: &[&str]) -> Result<(), String> {
    let last = body.iter().rev().map(|line| line.trim()).find(|line| !line.starts_with("//"));
    if last == Some("break;") { Ok(()) } else { Err("it may take a second turn".into()) }
}

/// The lines of the block that the first of `lines` opens, by its indentation.
fn body<'a, 'b>(lines: &'b [&'a str]) -> &'b [&'a str] {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let end = lines[1..].iter().position(|line| line.trim() == "}" && indent(line) == indent(lines[0]));
    &lines[1..=end.unwrap_or(lines.len() - 2)]
}

/// What is wrong with the loops of a source, and how many it has.
fn examine(source: &str) -> (usize, Vec<String>) {
    let lines: Vec<&str> = source.lines().collect();
    let mut found = 0;
    let mut wrong = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let header = line.trim();
        if !["for", "while", "loop"].iter().any(|word| opens(header, word)) {
            continue;
        }
        let verdict = if LOOKED_AT.iter().any(|&(known, _)| header.contains(known)) {
            Ok(())
        } else if opens(header, "for") {
            counts(header, body(&lines[at..]))
        } else if header == "loop {" {
            leaves(body(&lines[at..]))
        } else {
            Err("not looked at".into())
        };
        found += 1;
        wrong.extend(verdict.err().map(|why| format!("{}: `{header}`: {why}", at + 1)));
    }
    (found, wrong)
}

#[test]
fn every_loop_of_every_kernel_ends() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut loops = 0;
    let mut seen = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "wgsl") {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let (found, wrong) = examine(&source);
        assert!(wrong.is_empty(), "{}:\n{}", path.display(), wrong.join("\n"));
        loops += found;
        seen.extend(LOOKED_AT.iter().filter(|(known, _)| source.contains(known)).map(|(known, _)| *known));
    }
    assert!(loops > 150, "only {loops} loops were found");
    for (known, _) in LOOKED_AT {
        assert!(seen.contains(&known), "no kernel has `{known}` any more");
    }
}

#[test]
fn loops_that_might_not_end_are_found() {
    for source in [
        "for (var j = 0u; j < end; j += step) {\n}",
        "for (var j = 0u; j < end; j--) {\n}",
        "for (var j = 0u; j < end; j += KEYS) {\n    j = 0u;\n}",
        "for (var j = 0u; i < end; j++) {\n}",
        "loop {\n    if (done) {\n        break;\n    }\n}",
        "while (busy) {\n}",
        "while(busy) {\n}",
        "for(var j = 0u; j < end; j++) {\n}",
        "for (var j = 0u; (j < end) | busy; j++) {\n}",
        "for (var j = 0u; j < end; j++) {\n    if (x) { j = 0u; }\n}",
    ] {
        assert_eq!(examine(source).1.len(), 1, "{source}");
    }
    assert_eq!(
        examine("for (var j = 0u; j < end; j += KEYS) {\n    o = j;\n}\nloop {\n    x();\n    break;\n}"),
        (2, vec![])
    );
}
