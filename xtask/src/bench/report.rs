//! A run as one page that needs nothing else: tables, and charts as inline SVG.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::report::writable;

use super::generation::Generation;
use super::lengths::{Line, Point};
use super::row::{Row, Run};
use super::table::{HEADER, LEGEND, cells, headline};

const WIDTH: u32 = 900;
/// The kernel, tiled passes, naive passes.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(140, 140, 140)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const PAGE: &str = "index.html";

/// Creates the directory of a page, and fails if that cannot be written to.
pub(crate) fn prepare(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    writable(&directory.join(PAGE))
}

/// Writes the page into its directory.
pub(crate) fn write(directory: &Path, run: &Run) -> Result<()> {
    let path = directory.join(PAGE);
    std::fs::write(&path, page(run)?).with_context(|| format!("writing {}", path.display()))
}

fn page(run: &Run) -> Result<String> {
    let head = "<meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>wattn bench</title>\
        <style>body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}\
        table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .6rem;border-bottom:1px solid #ccc;\
        text-align:left;white-space:nowrap}svg{max-width:100%;height:auto}pre{white-space:pre-wrap}</style>";
    let mut html = format!("<!doctype html><html lang=\"en\">{head}<h1>wattn bench</h1>");
    let commit = run.device.commit.as_deref().unwrap_or("unknown");
    write!(html, "<pre>{}\ncommit      {}</pre>", escaped(&headline(&run.device)), escaped(commit))?;
    let line = |cells: Vec<String>, tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    write!(html, "<h2>Cases</h2><table>{}", line(HEADER.map(String::from).to_vec(), "th"))?;
    for row in &run.rows {
        html += &line(cells(row), "td");
    }
    write!(html, "</table><p>{}</p>", escaped(LEGEND))?;
    let measured: Vec<&Row> = run.rows.iter().filter(|row| row.median_us.is_some()).collect();
    if !measured.is_empty() {
        html += "<h2>Roofline</h2><p>Each case at its FLOPs per byte; the line is the lower of both ceilings as measured first, to which each case is scaled from those beside it.</p>";
        html += &svg(480, |area| roofline(area, run, &measured))?;
        html += "<h2>Time against unfused passes</h2><p>From top to bottom: the kernel, three tiled passes, what the column naive stands for; as multiples of the first.</p>";
        html += &svg(80 + u32::try_from(measured.len() * 40)?, |area| bars(area, &measured))?;
    }
    if run.lengths.iter().any(|line| !line.points.is_empty()) {
        html += "<h2>Time against length</h2><p>Dashed: extrapolated by the fitted exponent, not run.</p>";
        html += &svg(480, |area| lengths(area, &run.lengths))?;
    }
    if run.generation.iter().any(|operator| !operator.points.is_empty()) {
        html += "<h2>Generation</h2><p>Tokens a second of one attention layer of BASED's 1.3B model, batch 1, f32, after as many others. A step is timed once: its state does not grow.</p>";
        html += &svg(480, |area| generation(area, &run.generation))?;
    }
    Ok(html + "</html>\n")
}

/// What plotters draws, as text.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
    draw(&area)?;
    area.present().map_err(drawing)?;
    drop(area);
    Ok(text)
}

fn roofline(area: &Area<'_>, run: &Run, rows: &[&Row]) -> Result<()> {
    let points: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| {
            Some((row.flops? / row.bytes?.max(1.0), row.gflops? * run.device.fma_gflops / row.fma_gflops?))
        })
        .collect();
    let (rate, bandwidth) = (run.device.fma_gflops, run.device.copy_gbps);
    let ridge = rate / bandwidth;
    let [least, most] = [f64::min as fn(f64, f64) -> f64, f64::max];
    let x = points.iter().fold(ridge, |n, p| least(n, p.0)) / 2.0..points.iter().fold(ridge, |n, p| most(n, p.0)) * 4.0;
    let y = points.iter().fold(rate, |n, p| least(n, p.1)) / 2.0..rate * 2.0;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())
        .map_err(drawing)?;
    let mesh = &mut chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).x_desc("FLOP per byte").y_desc("GFLOP/s").draw().map_err(drawing)?;
    let left = x.start.max(y.start / bandwidth);
    let roof = vec![(left, left * bandwidth), (ridge, rate), (x.end, rate)];
    chart.draw_series([PathElement::new(roof, BLACK.stroke_width(2))]).map_err(drawing)?;
    let circles = points.iter().map(|&point| Circle::new(point, 5, COLOURS[0].filled()));
    chart.draw_series(circles).map_err(drawing)?;
    let label = |(row, &point): (&&Row, &(f64, f64))| {
        EmptyElement::at(point) + Text::new(name(row), (8, -5), ("sans-serif", 11))
    };
    chart.draw_series(rows.iter().zip(&points).map(label)).map_err(drawing)?;
    Ok(())
}

fn lengths(area: &Area<'_>, lines: &[Line]) -> Result<()> {
    let curve = |line: &Line| {
        let place = |point: &Point| (f64::from(point.tokens), point.us / 1e3);
        let exponent = line.exponent.map_or(String::new(), |x| format!(", exponent {x:.2}"));
        Curve {
            label: format!("{}{exponent}", line.op),
            measured: line.points.iter().filter(|point| !point.extrapolated).count(),
            points: line.points.iter().map(place).collect(),
        }
    };
    curves(area, ["tokens", "ms"], &lines.iter().map(curve).collect::<Vec<_>>())
}

fn generation(area: &Area<'_>, operators: &[Generation]) -> Result<()> {
    let curve = |operator: &Generation| Curve {
        label: operator.op.clone(),
        measured: operator.points.len(),
        points: operator.points.iter().map(|point| (f64::from(point.tokens), point.per_second)).collect(),
    };
    curves(area, ["tokens before", "tokens a second"], &operators.iter().map(curve).collect::<Vec<_>>())
}

/// A line of a chart, drawn through up to its last point that was measured, dashed from there.
struct Curve {
    label: String,
    points: Vec<(f64, f64)>,
    measured: usize,
}

/// Lines over two logarithmic axes.
fn curves(area: &Area<'_>, [x, y]: [&str; 2], curves: &[Curve]) -> Result<()> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let bounds = |value: fn(&(f64, f64)) -> f64| {
        let least = all().map(value).fold(f64::INFINITY, f64::min);
        let most = all().map(value).fold(0.0, f64::max);
        least / 1.5..most * 3.0
    };
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(bounds(|point| point.0).log_scale(), bounds(|point| point.1).log_scale())
        .map_err(drawing)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc(x).y_desc(y).draw().map_err(drawing)?;
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let (measured, dashed) = (&curve.points[..curve.measured], &curve.points[curve.measured.saturating_sub(1)..]);
        chart.draw_series(measured.iter().map(|&point| Circle::new(point, 4, colour.filled()))).map_err(drawing)?;
        chart.draw_series([PathElement::new(measured.to_vec(), colour.stroke_width(2))]).map_err(drawing)?;
        let dashes = DashedLineSeries::new(dashed.iter().copied(), 6, 6, colour.stroke_width(2));
        chart.draw_series(dashes).map_err(drawing)?;
        if let Some(&end) = dashed.last() {
            let text = Text::new(curve.label.clone(), (-120, -16), ("sans-serif", 12));
            chart.draw_series([EmptyElement::at(end) + text]).map_err(drawing)?;
        }
    }
    Ok(())
}

fn bars(area: &Area<'_>, rows: &[&Row]) -> Result<()> {
    let times = |row: &Row| {
        let own = row.median_us.unwrap_or(f64::NAN);
        [Some(own), row.tiled_unfused_us, row.baseline_us].map(|us| us.map(|us| us / own))
    };
    let most = rows.iter().flat_map(|row| times(row)).flatten().fold(1.0, f64::max) * 1.05;
    // Four lines a row: its three bars and a gap.
    let lines = u32::try_from(rows.len() * 4)?;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(250)
        .build_cartesian_2d(0.0..most, 0.0..f64::from(lines))
        .map_err(drawing)?;
    chart.configure_mesh().disable_y_mesh().y_labels(0).x_desc("times the kernel's time").draw().map_err(drawing)?;
    for (row, top) in rows.iter().zip((0..=lines).rev().step_by(4).map(f64::from)) {
        let bars = times(row).into_iter().zip(COLOURS).zip([1.0, 2.0, 3.0]).filter_map(|((ratio, colour), line)| {
            Some(Rectangle::new([(0.0, top - line), (ratio?, top - line + 0.9)], colour.filled()))
        });
        chart.draw_series(bars).map_err(drawing)?;
        let label = EmptyElement::at((0.0, top - 1.0)) + Text::new(name(row), (-250, -2), ("sans-serif", 11));
        chart.draw_series([label]).map_err(drawing)?;
    }
    Ok(())
}

/// A row's name in charts.
fn name(row: &Row) -> String {
    let case = row.case.trim_start_matches("softmax/");
    if row.variant == "plan" { case.into() } else { format!("{case} ({})", row.variant) }
}

/// Errors of plotters borrow their backend.
fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a chart: {error}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::device::Device;
    use super::super::generation::Speed;
    use super::*;

    #[test]
    fn a_page_holds_both_charts_and_needs_nothing_else() {
        let row = Row {
            case: "softmax/x".into(),
            variant: "plan".into(),
            median_us: Some(10.0),
            baseline_us: Some(250.0),
            flops: Some(1e9),
            bytes: Some(1e6),
            gflops: Some(20.0),
            fma_gflops: Some(40.0),
            ..Row::default()
        };
        let rows = vec![row, Row { error: Some("wrong".into()), ..Row::default() }];
        let point = |tokens, us, extrapolated| Point { tokens, us, clock: None, extrapolated };
        let points = vec![point(1024, 10.0, false), point(2048, 40.0, false), point(4096, 160.0, true)];
        let lengths = vec![Line {
            op: "softmax".into(),
            gate: "softmax/x".into(),
            exponent: Some(2.0),
            points,
            error: None,
            skipped: None,
        }];
        let points = [1024, 2048].map(|tokens| Speed { tokens, per_second: 100.0, clock: None }).into();
        let generation = vec![Generation { op: "a_step".into(), bytes: 4, points, error: None, skipped: None }];
        let run = Run { schema: 1, trusted: false, device: Device::sample(), rows, lengths, generation };
        let html = page(&run).expect("drawn");
        assert_eq!(html.matches("<svg").count(), 4);
        assert!(html.contains("exponent 2.00") && html.contains("a_step"), "the lines' labels");
        assert!(html.contains("FAILED: wrong") && html.contains("a &lt;name&gt;"));
        assert!(!html.contains("src=") && !html.contains("href="), "something outside of the page");
    }
}
