//! `cargo xtask devices`: what there is to run on, and what decides the kernel on each.

use anyhow::{Context, Result, ensure};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use wattn::wgpu::{Adapter, Features};
use wattn::{Attention, Engine, Extent, HeadDim, Heads, Kernel, Storage};
use wattn_tests::{adapters, device_label, engine};

use crate::select::matching;

/// What `devices` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only adapters whose backend/name contains this
    #[arg(long, value_name = "S")]
    adapter: Option<String>,
}

/// Columns that a terminal is taken to have.
const WIDTH: u16 = 120;

/// Lists adapters, one table each.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = adapters(None);
    ensure!(!all.is_empty(), "wgpu finds no adapter; `cargo xtask test` installs a software one on Linux");
    let names: Vec<String> = all.iter().map(|adapter| device_label(&adapter.get_info())).collect();
    let found = matching(all, args.adapter.as_deref());
    ensure!(
        !found.is_empty(),
        "no adapter matches {:?}; there are: {}",
        args.adapter.as_deref().unwrap_or_default(),
        names.join(", ")
    );
    for adapter in found {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        table.set_header(["device", &device_label(&adapter.get_info())]);
        // One device that cannot be opened must not hide the others.
        match describe(&adapter) {
            Ok(rows) => table.add_rows(rows.into_iter().map(|(what, value)| [what.to_owned(), value])),
            Err(error) => table.add_row(["cannot be opened".to_owned(), format!("{error:#}")]),
        };
        println!("{table}");
    }
    Ok(())
}

fn describe(adapter: &Adapter) -> Result<Vec<(&'static str, String)>> {
    let info = adapter.get_info();
    let engine = engine(adapter)?;
    let device = engine.capabilities();
    let subgroups = match device.subgroups {
        Some((min, max)) => format!("{min} to {max} lanes"),
        None => "none for shaders".to_owned(),
    };
    let matrices = match device.matrix {
        Some(side) => format!("{side} x {side}, f16 factors, f32 sums"),
        None => "none that kernels use".to_owned(),
    };
    let features: Vec<&str> = [
        (Features::SUBGROUP, "subgroups"),
        (Features::SHADER_F16, "f16"),
        (Features::TIMESTAMP_QUERY, "timestamps"),
        (Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
    ]
    .into_iter()
    .filter_map(|(feature, name)| adapter.features().contains(feature).then_some(name))
    .collect();
    let rows = [
        ("name", info.name),
        ("backend", format!("{:?}", info.backend).to_lowercase()),
        ("driver", format!("{} {}", info.driver, info.driver_info).trim().to_owned()),
        ("kind", format!("{:?}", device.kind).to_lowercase()),
        ("subgroups", subgroups),
        ("matrices", matrices),
        ("workgroup memory", format!("{} bytes", device.workgroup_bytes)),
        ("workgroup size", format!("{} invocations", device.workgroup_invocations)),
        ("largest binding", format!("{} MiB", device.binding_bytes >> 20)),
        ("storage buffers", device.storage_buffers.to_string()),
        ("features", features.join(", ")),
    ];
    Ok(rows.into_iter().chain(kernels(&engine)?).collect())
}

/// The kernel for a problem without options, with its reason, and why the others are not chosen; `matrix` is asked in f16.
fn kernels(engine: &Engine) -> Result<[(&'static str, String); Kernel::ALL.len()]> {
    let attention = Attention::new(Heads::new(8)?, HeadDim::new(64)?);
    let half = attention.storage(Storage::F16);
    let extent = Extent::new(1, 1024, 1024);
    let plan = |attention| engine.plan(&attention, extent).context("planning 1x8x1024x1024, head dim 64");
    let (chosen, chosen_in_half) = (plan(attention)?, plan(half)?);
    Ok(Kernel::ALL.map(|kernel| {
        let in_half = kernel == Kernel::Matrix;
        let (attention, chosen) = if in_half { (half, &chosen_in_half) } else { (attention, &chosen) };
        let chosen = chosen.details();
        let verdict = match engine.plan(&attention.kernel(kernel), extent) {
            _ if kernel == chosen.key.kernel => format!("chosen: {}", chosen.reason),
            Ok(_) => format!("could serve, {} comes first on this kind of device", chosen.key.kernel),
            Err(error) => error.to_string(),
        };
        (kernel.name(), if in_half { format!("in f16: {verdict}") } else { verdict })
    }))
}
