//! `cargo xtask test`: all tests, after making sure that there is something to run them on.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::check::{cargo, step};
use crate::lavapipe::ensure_adapter;

/// What `test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For the test binaries: filters, --test-threads and the like
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// Runs `cargo test --workspace`; fails if no test is what was asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    for adapter in ensure_adapter(None)? {
        let info = adapter.get_info();
        println!("adapter {}: {}, {} {}", wattn_tests::device_label(&info), info.name, info.driver, info.driver_info);
    }
    let mut arguments = vec!["test", "--workspace"];
    if !args.arguments.is_empty() {
        arguments.push("--");
        arguments.extend(args.arguments.iter().map(String::as_str));
        let filtered = args.arguments.iter().any(|argument| !argument.starts_with('-'));
        if filtered && !arguments.contains(&"--list") {
            ensure!(any_listed(&arguments)?, "no test matches {}", args.arguments.join(" "));
        }
    }
    step(&arguments, &[])
}

/// Whether these arguments leave anything to run: each test binary alone passes with nothing to do.
fn any_listed(arguments: &[&str]) -> Result<bool> {
    let mut list = cargo();
    let output =
        list.args(arguments).arg("--list").stderr(Stdio::inherit()).output().context("cargo does not start")?;
    ensure!(output.status.success(), "listing tests: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with(": test")))
}
