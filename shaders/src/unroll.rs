//! What kernel sources have beyond WGSL: a counted loop, unrolled as text, and lines that only some kernels have.
//!
//! Registers cannot be indexed at run time, so a kernel whose rows live in registers needs one name a row. A line
//! `//$ for r in 0..ROWS` (or `.. step 4`) repeats the lines up to its `//$ end`, with `$r`, `${r+1}` and `${r+n}` replaced by the number.
//! Bounds are numbers, constants of the kernel's header, or variables of outer loops, or sums of these (`i+1..N`).
//! `//$ if OUT` keeps the lines up to its `//$ end` where the constant is not 0. Other lines pass
//! unchanged.

/// Unrolls `source`; `constant` looks up the bounds that are names.
///
/// # Errors
/// A directive that does not parse, names an unknown constant, or has no end: a message with the line.
pub(crate) fn unroll(source: &str, constant: &dyn Fn(&str) -> Option<u32>) -> Result<String, String> {
    let lines: Vec<&str> = source.lines().collect();
    let mut out = String::with_capacity(source.len() * 4);
    expand(&lines, constant, &[], &mut out)?;
    Ok(out)
}

type Bound = (char, u32);

fn expand(
    lines: &[&str],
    constant: &dyn Fn(&str) -> Option<u32>,
    bound: &[Bound],
    out: &mut String,
) -> Result<(), String> {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        match directive(line) {
            None => {
                substitute(line, bound, out)?;
                out.push('\n');
                at += 1;
            }
            Some("end") => return Err(format!("`{line}` ends no loop")),
            Some(text) if text.starts_with("if ") => {
                let name = text[3..].trim();
                let kept = constant(name).ok_or_else(|| format!("no constant `{name}`: `{line}`"))?;
                let end = matching_end(lines, at).ok_or_else(|| format!("no end for `{line}`"))?;
                if kept != 0 {
                    expand(&lines[at + 1..end], constant, bound, out)?;
                }
                at = end + 1;
            }
            Some(text) => {
                let (name, range) = parse_loop(text, constant, bound).ok_or_else(|| format!("not a loop: `{line}`"))?;
                let end = matching_end(lines, at).ok_or_else(|| format!("no end for `{line}`"))?;
                for value in range {
                    let mut inner = bound.to_vec();
                    inner.push((name, value));
                    expand(&lines[at + 1..end], constant, &inner, out)?;
                }
                at = end + 1;
            }
        }
    }
    Ok(())
}

fn directive(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//$").map(str::trim)
}

fn matching_end(lines: &[&str], start: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, line) in lines.iter().enumerate().skip(start) {
        match directive(line) {
            Some("end") => depth -= 1,
            Some(_) => depth += 1,
            None => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn parse_loop(
    text: &str,
    constant: &dyn Fn(&str) -> Option<u32>,
    bound: &[Bound],
) -> Option<(char, std::iter::StepBy<std::ops::Range<u32>>)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (name, range, step) = match words[..] {
        ["for", name, "in", range] => (name, range, "1"),
        ["for", name, "in", range, "step", step] => (name, range, step),
        _ => return None,
    };
    let mut letters = name.chars();
    let name = letters.next().filter(char::is_ascii_lowercase)?;
    let (from, to) = range.split_once("..")?;
    let value = |word: &str| {
        let outer = |term: &str| bound.iter().rev().find(|(n, _)| term == n.to_string()).map(|(_, v)| *v);
        word.split('+')
            .map(|term| term.parse().ok().or_else(|| outer(term)).or_else(|| constant(term)))
            .sum::<Option<u32>>()
    };
    let step = usize::try_from(value(step)?).ok().filter(|&step| step > 0)?;
    letters.next().is_none().then_some((name, (value(from)?..value(to)?).step_by(step)))
}

fn substitute(line: &str, bound: &[Bound], out: &mut String) -> Result<(), String> {
    let lookup = |name: char| {
        let found = bound.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| *v);
        found.ok_or_else(|| format!("`${name}` is bound by no loop: `{line}`"))
    };
    let mut rest = line;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        let value = if let Some(braced) = rest.strip_prefix('{') {
            let (inside, after) = braced.split_once('}').ok_or_else(|| format!("no closing brace: `{line}`"))?;
            let (name, plus) = inside.split_once('+').unwrap_or((inside, "0"));
            let letter = |name: &str| name.parse().map_err(|_| format!("not a letter in `{line}`"));
            rest = after;
            lookup(letter(name)?)? + plus.parse().or_else(|_| lookup(letter(plus)?))?
        } else {
            let name = rest.chars().next().unwrap_or(' ');
            let value = lookup(name)?;
            rest = &rest[1..];
            value
        };
        out.push_str(&value.to_string());
    }
    out.push_str(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::unroll;

    fn rows(name: &str) -> Option<u32> {
        (name == "ROWS").then_some(2)
    }

    #[test]
    fn loops_nest_and_step() {
        let source =
            "a\n//$ for r in 0..ROWS\n//$ for c in 0..4 step 2\nx_$r_$c = y_${c+1}; // $ru\n//$ end\n//$ end\nb";
        let want = "a\nx_0_0 = y_1; // 0u\nx_0_2 = y_3; // 0u\nx_1_0 = y_1; // 1u\nx_1_2 = y_3; // 1u\nb\n";
        assert_eq!(unroll(source, &rows).unwrap(), want);
    }

    #[test]
    fn bounds_may_be_outer_variables() {
        let source = "//$ for i in 0..ROWS\n//$ for j in i+1..3\nx_$i_$j = y_${i+j};\n//$ end\n//$ end";
        assert_eq!(unroll(source, &rows).unwrap(), "x_0_1 = y_1;\nx_0_2 = y_2;\nx_1_2 = y_3;\n");
    }

    #[test]
    fn conditions_keep_or_drop() {
        let source = "a\n//$ if ROWS\nb\n//$ for r in 0..ROWS\nc$r\n//$ end\n//$ end\n//$ if NONE\nd\n//$ end\ne";
        let constant = |name: &str| if name == "NONE" { Some(0) } else { rows(name) };
        assert_eq!(unroll(source, &constant).unwrap(), "a\nb\nc0\nc1\ne\n");
    }

    #[test]
    fn mistakes_are_named() {
        for (source, needle) in [
            ("//$ for r in 0..COLS\n//$ end", "not a loop"),
            ("//$ for r in 0..2", "no end"),
            ("//$ end", "ends no loop"),
            ("x_$r", "bound by no loop"),
            ("//$ for r in 0..2\n${r+1\n//$ end", "no closing brace"),
            ("//$ for r in 1..2\n${r-1}\n//$ end", "not a letter"),
            ("//$ if COLS\n//$ end", "no constant"),
            ("//$ repeat 2\n//$ end", "not a loop"),
        ] {
            let error = unroll(source, &rows).unwrap_err();
            assert!(error.contains(needle), "{source}: {error}");
        }
    }
}
