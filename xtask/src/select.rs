//! Which device and which kernel: `--adapter` and `--kernel`, the same for every command.

use std::fmt;

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use wattn::wgpu::{Adapter, AdapterInfo, DeviceType};
use wattn::{Engine, EngineBuilder, Kernel};
use wattn_tests::{Variant, device_label, engine};

use crate::lavapipe::ensure_adapter;

#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// An adapter whose backend/name contains this [default: discrete before integrated before software]
    #[arg(long, value_name = "S")]
    pub(crate) adapter: Option<String>,
    /// Pins the kernel
    #[arg(long, value_name = "S", value_parser = kernel_parser())]
    pub(crate) kernel: Option<Kernel>,
    /// Compiles kernels without wgpu's counters of their loops
    #[arg(long)]
    pub(crate) trusted: bool,
}

/// A device that commands run on.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) engine: Engine,
    pub(crate) info: AdapterInfo,
    /// `backend/name`
    pub(crate) label: String,
    /// Whether its kernels are compiled without wgpu's counters of their loops.
    pub(crate) trusted: bool,
}

fn kernel_parser() -> impl TypedValueParser<Value = Kernel> {
    PossibleValuesParser::new(Kernel::ALL.map(Kernel::name)).map(|name| {
        let named = |kernel: &Kernel| kernel.name() == name;
        Kernel::ALL.into_iter().find(named).expect("the parser takes these names alone")
    })
}

impl Selection {
    /// The adapter to run on; where there is no adapter at all and none is named, after installing one.
    pub(crate) fn adapter(&self) -> Result<Adapter> {
        let wanted = self.adapter.as_deref();
        choose(ensure_adapter(wanted)?, wanted)
    }

    /// An engine on that adapter.
    pub(crate) fn device(&self) -> Result<Device> {
        let adapter = self.adapter()?;
        let info = adapter.get_info();
        let label = device_label(&info);
        let engine = engine(&adapter)?;
        let engine = if self.trusted { trusted(&engine, &adapter).build() } else { engine };
        Ok(Device { engine, info, label, trusted: self.trusted })
    }

    /// The pinned kernel, in the shape for the device.
    pub(crate) fn variant(&self) -> Option<Variant> {
        self.kernel.map(Variant::from)
    }
}

/// An engine on the same device that does not have the loops of its kernels counted.
pub(crate) fn trusted(engine: &Engine, adapter: &Adapter) -> EngineBuilder {
    Engine::builder(engine.device(), engine.queue())
        .matrix_properties(adapter.cooperative_matrix_properties())
        .trusted()
}

/// The adapters whose `backend/name` contains `filter`, whatever the case; spaces and dashes are the same.
pub(crate) fn matching(all: Vec<Adapter>, filter: Option<&str>) -> Vec<Adapter> {
    let Some(filter) = filter else { return all };
    let plain = |text: &str| text.to_lowercase().replace(' ', "-");
    let wanted = plain(filter);
    let matches = |adapter: &Adapter| {
        let info = adapter.get_info();
        plain(&format!("{:?}/{}", info.backend, info.name)).contains(&wanted) || device_label(&info).contains(&wanted)
    };
    all.into_iter().filter(matches).collect()
}

/// Of these adapters, the one that `filter` names, or else the one that is preferred.
pub(crate) fn choose(all: Vec<Adapter>, filter: Option<&str>) -> Result<Adapter> {
    let names: Vec<String> = all.iter().map(|adapter| device_label(&adapter.get_info())).collect();
    match matching(all, filter).into_iter().min_by_key(|adapter| rank(adapter.get_info().device_type)) {
        Some(adapter) => Ok(adapter),
        None => bail!("no adapter matches {:?}; there are: {}", filter.unwrap_or_default(), names.join(", ")),
    }
}

/// The order in which adapters are preferred.
fn rank(kind: DeviceType) -> u8 {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu | DeviceType::Other => 2,
        DeviceType::Cpu => 3,
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} {})", self.label, self.info.name, self.info.driver, self.info.driver_info)
    }
}
