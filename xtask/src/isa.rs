//! `cargo xtask isa`: what a Vulkan driver's compiler made of each kernel. Nothing is run, so that drivers without a GPU do.

mod assembly;
mod baseline;
#[expect(unsafe_code, reason = "wgpu does not pass on what drivers say of pipelines")]
mod capture;
mod dialects;
mod kernels;
mod row;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use wattn::wgpu::Adapter;
use wattn::{Engine, Prepared};
use wattn_shaders::Key;
use wattn_tests::{adapters, device_label};

use self::baseline::{Baseline, Device as Recorded};
use self::row::{Program, Row};
use crate::report::write_json;
use crate::select::{Device, choose, trusted};

/// What `isa` takes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Needs a Vulkan driver with VK_KHR_pipeline_executable_properties, as Mesa's have. \
    xtask/isa/README.md tells how to have those of five vendors without a GPU, and what the columns mean.")]
pub(crate) struct Args {
    /// An adapter whose backend/name contains this [default: discrete before integrated before software]
    #[arg(long, value_name = "S")]
    gpu: Option<String>,
    /// Only kernels whose label contains this
    #[arg(long, value_name = "S")]
    filter: Option<String>,
    /// Writes the rows, with all that the driver said, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes each kernel's assembly, and what else the driver prints, into this folder
    #[arg(long, value_name = "DIR")]
    asm: Option<PathBuf>,
    /// Fails where a kernel spills that did not, grew by more than a tenth, or is not seen any more, since the committed baseline
    #[arg(long)]
    check: bool,
    /// Takes these figures into the baseline
    #[arg(long, conflicts_with = "check")]
    record: bool,
    /// Compiles kernels without wgpu's counters of their loops
    #[arg(long, conflicts_with_all = ["check", "record"])]
    trusted: bool,
}

/// One pipeline, whatever its operator.
struct One(Key);

impl Prepared for One {
    fn keys(&self) -> Vec<Key> {
        vec![self.0]
    }
}

/// Compiles the kernels and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = adapters(None);
    ensure!(!all.is_empty(), "wgpu finds no adapter; xtask/isa/README.md tells how to have drivers without their GPUs");
    let device = device(choose(all, args.gpu.as_deref())?, args.trusted)?;
    println!("{device}");
    let rows = rows(&device.engine, args)?;
    ensure!(!rows.is_empty(), "no kernel matches {:?}", args.filter.as_deref().unwrap_or_default());
    println!("{}", table(&rows));
    if let Some(path) = &args.json {
        write_json(path, &device, &rows, [])?;
    }
    let now = Recorded::new(format!("{} {}", device.info.driver, device.info.driver_info), &rows);
    against_baseline(device.info.name.trim(), now, args)
}

fn device(adapter: Adapter, without_counters: bool) -> Result<Device> {
    let info = adapter.get_info();
    let label = device_label(&info);
    let engine = capture::engine(&adapter).with_context(|| label.clone())?;
    let engine = if without_counters { trusted(&engine, &adapter).build() } else { engine };
    Ok(Device { engine, info, label, trusted: without_counters })
}

fn rows(engine: &Engine, args: &Args) -> Result<Vec<Row>> {
    // wgpu has compiled kernels of its own.
    capture::take_programs();
    let mut rows = Vec::new();
    for (key, planned) in kernels::keys(engine.capabilities())? {
        let label = key.to_string();
        if args.filter.as_ref().is_some_and(|filter| !label.contains(filter)) {
            continue;
        }
        engine.prepare([&One(key)])?;
        // Where a driver has a program for each subgroup size, the widest runs.
        let program = capture::take_programs().into_iter().max_by_key(|program| program.subgroup);
        let program = program.with_context(|| format!("the driver says nothing of {label}"))?;
        if let Some(folder) = &args.asm {
            write_texts(folder, &label, &program)?;
        }
        rows.push(Row::new(label, planned, kernels::shared_bytes(&key), &program));
    }
    Ok(rows)
}

fn write_texts(folder: &Path, label: &str, program: &Program) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, text) in &program.texts {
        let path = folder.join(format!("{}.{name}.txt", label.replace('/', "_")).replace([' ', '/'], "-"));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled).set_header([
        "kernel (* planned)",
        "lanes",
        "registers",
        "spills",
        "shared",
        "occupancy",
        "instr",
        "cycles",
        "loop",
        "fma",
        "matrix",
        "shared",
        "integer",
        "scalar",
    ]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let mix = row.hot_loop;
        let share = |part: fn(&assembly::Mix) -> u32| {
            let percent =
                |mix: &assembly::Mix| format!("{:.0}%", 100.0 * f64::from(part(mix)) / f64::from(mix.vector().max(1)));
            mix.as_ref().map_or_else(|| "-".to_owned(), percent)
        };
        table.add_row([
            format!("{}{}", row.kernel, if row.planned { " *" } else { "" }),
            row.subgroup.to_string(),
            number(row.registers),
            number(row.spills),
            row.shared_bytes.to_string(),
            number(row.occupancy),
            number(row.instructions),
            number(row.cycles),
            mix.map_or_else(|| "-".to_owned(), |mix| mix.instructions().to_string()),
            share(|mix| mix.fma),
            share(|mix| mix.matrix),
            share(|mix| mix.shared),
            share(|mix| mix.integer),
            mix.map_or_else(|| "-".to_owned(), |mix| mix.scalar.to_string()),
        ]);
    }
    table
}

/// Prints what has changed; `--check` fails by it, `--record` makes it the baseline.
fn against_baseline(name: &str, now: Recorded, args: &Args) -> Result<()> {
    let path = Baseline::path();
    let baseline = Baseline::read(&path)?;
    let Some(recorded) = baseline.devices.get(name) else {
        ensure!(!args.check, "the baseline has no figures of {name}; --record takes them into it");
        return if args.record { record(baseline, name, now, &path) } else { Ok(()) };
    };
    if recorded.driver != now.driver {
        println!("the baseline is of {}, this is {}", recorded.driver, now.driver);
    }
    let differences = recorded.differences(&now, args.filter.is_none());
    differences.iter().for_each(|difference| println!("{difference}"));
    let failed = differences.iter().filter(|difference| difference.fails).count();
    if args.check && failed > 0 {
        bail!("{failed} figures are beyond their margin; what is meant to be goes into the baseline by --record");
    }
    if args.record {
        // A filtered run knows nothing of the other kernels.
        let mut kernels = if args.filter.is_some() { recorded.kernels.clone() } else { BTreeMap::new() };
        kernels.extend(now.kernels);
        return record(baseline, name, Recorded { kernels, ..now }, &path);
    }
    Ok(())
}

fn record(mut baseline: Baseline, name: &str, now: Recorded, path: &Path) -> Result<()> {
    baseline.devices.insert(name.to_owned(), now);
    baseline.write(path)?;
    println!("recorded in {}", path.display());
    Ok(())
}
