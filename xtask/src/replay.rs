//! `cargo xtask replay`: runs case files and prints the error of each expected output.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use comfy_table::{Table, presets::NOTHING};
use wattn_cases::{Case, CaseFile};
use wattn_tests::{Variant, judge_file};

use crate::report::{Row, guarded, write_json};
use crate::select::{Device, Selection};

/// What `replay` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Case files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    selection: Selection,
    /// Runs a tile kernel in the shape of GPUs on a CPU driver too, as `verify` does
    #[arg(long, hide = true, requires = "kernel")]
    gpu_shape: bool,
    /// Writes the rows here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs every file; fails, after all have run, if any output did.
pub(crate) fn run(args: &Args) -> Result<()> {
    let device = args.selection.device()?;
    println!("{device}");
    let variant = args.selection.variant().map(|variant| Variant { gpu_shape: args.gpu_shape, ..variant });
    let rows: Vec<Row> = args.paths.iter().flat_map(|path| rows(&device, variant, path)).collect();
    println!("{}", table(&rows));
    let failed = rows.iter().filter(|row| !row.pass).count();
    println!("{} outputs, {} elements compared, {failed} outputs failed", rows.len(), elements(&rows));
    if let Some(path) = &args.json {
        write_json(path, &device, &rows, [])?;
    }
    ensure!(failed == 0, "{failed} of {} outputs failed", rows.len());
    Ok(())
}

fn elements(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.elements).sum()
}

/// The rows of a file, or of all files under a folder.
fn rows(device: &Device, variant: Option<Variant>, path: &Path) -> Vec<Row> {
    let mut files = Vec::new();
    let listed = case_files(path, &mut files);
    let failed = |error: String| Row::failed(&path.display().to_string(), None, error);
    let mut rows: Vec<Row> = files.iter().flat_map(|file| file_rows(device, variant, file)).collect();
    match listed {
        Err(error) => rows.push(failed(error.to_string())),
        Ok(()) if rows.is_empty() => rows.push(failed("no .safetensors file lies in this folder".into())),
        Ok(()) => {}
    }
    rows
}

/// Files in the order of their names. What is named itself is taken whatever its name ends in.
fn case_files(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() || entry.extension().is_some_and(|extension| extension == "safetensors") {
            case_files(&entry, files)?;
        }
    }
    Ok(())
}

/// The rows of a file: by the planner's own choice, or by the pinned kernel; linear attention then in both schedules.
fn file_rows(device: &Device, variant: Option<Variant>, path: &Path) -> Vec<Row> {
    let file = CaseFile::read(path);
    let variants = match (variant, &file.content) {
        (Some(variant), Ok(Case::Linear(_) | Case::Based(_))) => Variant::schedules(variant.kernel).map(Some).to_vec(),
        _ => vec![variant],
    };
    variants.into_iter().flat_map(|variant| output_rows(device, variant, file.clone())).collect()
}

/// One row an expected output: compared where it can be, else with the reason why not.
fn output_rows(device: &Device, variant: Option<Variant>, file: CaseFile) -> Vec<Row> {
    let name = &file.case;
    if file.expected.is_empty() {
        let error = file.content.err().unwrap_or_else(|| "the file expects no output".into());
        return vec![Row::failed(name, None, error)];
    }
    let compared = file.content.map_err(anyhow::Error::msg).and_then(|case| run_case(device, variant, &case));
    let row = |output: &String| match &compared {
        Err(error) => Row::failed(name, Some(output), format!("{error:#}")),
        Ok(rows) => rows
            .iter()
            .find(|row| row.output.as_ref() == Some(output))
            .cloned()
            .unwrap_or_else(|| Row::failed(name, Some(output), "unknown output")),
    };
    file.expected.iter().map(row).collect()
}

fn run_case(device: &Device, variant: Option<Variant>, case: &Case) -> Result<Vec<Row>> {
    Ok(Row::compared(case.name(), guarded(|| judge_file(&device.engine, case, variant))?))
}

fn table(rows: &[Row]) -> Table {
    let number = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.2e}"));
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(["case", "output", "kernel", "max_abs", "rms_ratio", "tolerance", "elements", "pass", "error"]);
    table.add_rows(rows.iter().map(|row| {
        [
            row.case.clone(),
            row.output.clone().unwrap_or_default(),
            row.kernel.unwrap_or_default().to_owned(),
            number(row.max_abs),
            number(row.rms_ratio),
            number(row.tolerance),
            row.elements.to_string(),
            if row.pass { "yes" } else { "NO" }.to_owned(),
            row.error.clone().unwrap_or_default(),
        ]
    }));
    table
}
