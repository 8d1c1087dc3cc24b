//! `cargo xtask test`: all tests, after making sure that there is something to run them on.

use anyhow::Result;

use crate::check::step;
use crate::lavapipe::ensure_adapter;

/// What `test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For the test binaries: filters, --test-threads and the like
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// Runs `cargo test --workspace`.
pub(crate) fn run(args: &Args) -> Result<()> {
    for adapter in ensure_adapter(None)? {
        let info = adapter.get_info();
        println!("adapter {}: {}, {} {}", wattn_tests::device_label(&info), info.name, info.driver, info.driver_info);
    }
    let mut arguments = vec!["test", "--workspace"];
    if !args.arguments.is_empty() {
        arguments.push("--");
        arguments.extend(args.arguments.iter().map(String::as_str));
    }
    step(&arguments, &[])
}
