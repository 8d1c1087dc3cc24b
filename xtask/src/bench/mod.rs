//! `cargo xtask bench`: how fast each problem is, against ceilings measured on the same device.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::select::Selection;

// MERGE: this folder is replaced by the one with the measurements.

/// What `bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only cases whose name contains this
    #[arg(long, value_name = "S")]
    filter: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// Fewer and shorter cases, for a first look and for CI
    #[arg(long)]
    quick: bool,
    /// Writes the rows here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compares with rows written earlier on the same device
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Writes a report with plots into this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    bail!("being written; given were {args:?}")
}
