//! The table of a run, for people.

use std::collections::BTreeSet;

use comfy_table::{CellAlignment, Table, presets};

use super::device::Device;
use super::generation::Generation;
use super::lengths::Line;
use super::row::{Row, memory};
use super::stats::Timer;

pub(crate) const HEADER: [&str; 13] = [
    "case",
    "kernel",
    "tile",
    "time",
    "±",
    "predicted",
    "GFLOP/s",
    "GB/s",
    "of ceiling",
    "naive",
    "tiled",
    "memory",
    "clock",
];

pub(crate) const LEGEND: &str = "of ceiling: the time that the named ceiling around the case allows, over the median. \
    f32 fma: of a kernel on matrices, which have units of their own that may be faster. !: more than the ceiling allows, for this reason or \
    since caches held what counts as moved.\nnaive, tiled: three unfused passes in f32, as multiples of the time; naive of linear attention, a token-by-token scan with its state \
    in memory; of few queries, the forward kernel on the same problem.\ntile: queries x keys; of linear attention, tokens of a chunk x segments.\n\
    memory: workspace, against the scores that unfused passes store.";

/// What is said above the table: the device, its ceilings, the costs of a call.
pub(crate) fn headline(device: &Device) -> String {
    let host = &device.host;
    let software = if device.software {
        "\nA SOFTWARE driver: these figures are of a CPU and say nothing about any GPU. Compare them with each other only."
    } else {
        ""
    };
    let others: String = device.fma_other_gflops.iter().map(|(name, rate)| format!(", {name} {rate:.1}")).collect();
    let sgemm = device.sgemm_gflops.map(|rate| format!(", {rate:.1} GFLOP/s matrix products of a CPU library"));
    format!(
        "{} ({}){}\nceilings    {:.1} GFLOP/s f32 multiply-adds ({}{}){}, {:.1} GB/s copied, read plus written \
         (buffer copy {:.1}, kernel {:.1})\ncosts       plan {:.1} us, encode {:.1} us, empty submission {:.1} us, \
         one empty dispatch {:.1} us, each further one {:.1} us",
        device.identity(),
        device.kind,
        software,
        device.fma_gflops,
        device.fma_probe,
        others,
        sgemm.unwrap_or_default(),
        device.copy_gbps,
        device.copy_buffer_gbps,
        device.copy_kernel_gbps,
        host.plan_us,
        host.encode_us,
        host.empty_submit_us,
        host.dispatch_us,
        host.next_dispatch_us,
    )
}

/// One line a case and kernel, in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(HEADER);
    for row in rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let errors: String =
        rows.iter().filter_map(|row| Some(format!("\n{}: {}", row.case, row.baseline_error.as_ref()?))).collect();
    format!("{table}\n\n{LEGEND}\n{}{errors}", predictions(rows))
}

/// How good the predictions were.
fn predictions(rows: &[Row]) -> String {
    let ratios: Vec<f64> = rows.iter().filter_map(Row::over_predicted).collect();
    let near = ratios.iter().filter(|&&ratio| (1.0 / 1.5..=1.5).contains(&ratio)).count();
    format!(
        "predicted: by the plan, from the ceilings measured at the start; within a factor of 1.5 for {near} of {} rows.",
        ratios.len()
    )
}

/// Time against length, a column an operator.
pub(crate) fn lengths(lines: &[Line]) -> String {
    let mut table = Table::new();
    let exponent = |line: &Line| line.exponent.map_or("-".into(), |x| format!("{x:.2}"));
    let headed = lines.iter().map(|line| format!("{} (exponent {})", line.op, exponent(line)));
    table.load_preset(presets::ASCII_MARKDOWN).set_header(std::iter::once("tokens".to_owned()).chain(headed));
    let tokens: BTreeSet<u32> = lines.iter().flat_map(|line| &line.points).map(|point| point.tokens).collect();
    for tokens in tokens {
        let cell = |line: &Line| match line.points.iter().find(|point| point.tokens == tokens) {
            Some(point) if point.extrapolated => format!("~ {}", microseconds(point.us)),
            Some(point) => microseconds(point.us) + by_wall(point.clock),
            None => "-".into(),
        };
        table.add_row(std::iter::once(tokens.to_string()).chain(lines.iter().map(cell)));
    }
    let failed = lines.iter().map(|line| stopped(&line.op, line.error.as_deref(), line.skipped.as_deref()));
    format!(
        "{table}\n\ntime against length, 8 heads of 64; exponents fitted from 2048 tokens on; ~ extrapolated, not run.{}",
        failed.collect::<String>()
    )
}

/// Tokens a second in decode, a column an operator.
pub(crate) fn generation(operators: &[Generation]) -> String {
    let mut table = Table::new();
    let headed = operators.iter().map(|operator| format!("{} ({})", operator.op, memory(operator.bytes)));
    table.load_preset(presets::ASCII_MARKDOWN).set_header(std::iter::once("tokens before".to_owned()).chain(headed));
    let tokens: BTreeSet<u32> = operators.iter().flat_map(|op| &op.points).map(|point| point.tokens).collect();
    for tokens in tokens {
        let cell = |operator: &Generation| {
            let point = operator.points.iter().find(|point| point.tokens == tokens);
            point.map_or("-".into(), |point| format!("{:.0}{}", point.per_second, by_wall(point.clock)))
        };
        table.add_row(std::iter::once(tokens.to_string()).chain(operators.iter().map(cell)));
    }
    let failed = operators.iter().map(|op| stopped(&op.op, op.error.as_deref(), op.skipped.as_deref()));
    format!(
        "{table}\n\ntokens a second of one attention layer of BASED's 1.3B model (16 heads of 112, 16 features), batch 1, f32; in \
         brackets the state, or the longest cache. A step is timed once: its state does not grow.{}",
        failed.collect::<String>()
    )
}

/// A line that says why an operator has not all its points.
fn stopped(op: &str, error: Option<&str>, skipped: Option<&str>) -> String {
    match (error, skipped) {
        (Some(error), _) => format!("\n{op} FAILED: {error}"),
        (None, Some(reason)) => format!("\n{op} skipped: {reason}"),
        (None, None) => String::new(),
    }
}

/// Says of a sweep's figure that it holds a submission too.
fn by_wall(clock: Option<Timer>) -> &'static str {
    if clock == Some(Timer::Wall) { " (wall)" } else { "" }
}

/// A row's cells, as in the header.
pub(crate) fn cells(row: &Row) -> Vec<String> {
    let case = row.case.clone();
    let kernel = match row.variant.as_str() {
        "plan" => row.kernel.clone(),
        "trusted" => format!("{} (loops not counted)", row.kernel),
        forced => format!("{forced} (forced)"),
    };
    let Some(median) = row.median_us else {
        let why = match (&row.error, &row.skipped) {
            (None, Some(reason)) => format!("skipped: {reason}"),
            (error, _) => format!("FAILED: {}", error.as_deref().unwrap_or_default()),
        };
        return vec![case, kernel, String::new(), why];
    };
    let number = |value: Option<f64>| value.map_or(String::new(), |x| format!("{x:.1}"));
    let times = |value: Option<f64>| value.map_or("-".into(), |us| format!("{:.1}x", us / median));
    let [rows, columns] = row.tile.unwrap_or_default();
    let (own, scores) = (row.workspace_bytes.unwrap_or_default(), row.baseline_workspace_bytes);
    let fraction = row.fraction_of_ceiling.unwrap_or_default() * 100.0;
    let mark = if fraction > 105.0 { "!" } else { "" };
    vec![
        case,
        kernel,
        format!("{rows}x{columns}"),
        microseconds(median),
        format!("{:.0}%", row.mad_us.unwrap_or_default() / median * 100.0),
        row.predicted_us.map_or_else(String::new, microseconds),
        number(row.gflops),
        row.gbps.map_or(String::new(), |x| format!("{x:.2}")),
        format!("{fraction:.0}%{mark} {}", row.ceiling.as_deref().unwrap_or_default()),
        times(row.baseline_us),
        times(row.tiled_unfused_us),
        format!("{} / {}", memory(own), scores.map_or("-".into(), memory)),
        row.clock.map_or("", Timer::name).into(),
    ]
}

/// A time in a unit that fits.
pub(crate) fn microseconds(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_its_ceiling_is_marked() {
        let of_ceiling = |fraction| {
            let row = Row { median_us: Some(1.0), fraction_of_ceiling: Some(fraction), ..Row::default() };
            cells(&Row { ceiling: Some("f32 fma".into()), ..row })[8].clone()
        };
        assert_eq!(of_ceiling(1.04), "104% f32 fma");
        assert_eq!(of_ceiling(2.0), "200%! f32 fma");
    }
}
