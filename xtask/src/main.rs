//! `cargo xtask`: everything that is done with wattn from the command line.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod devices;
mod lavapipe;
mod model;
mod replay;
mod report;
mod select;
mod test;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "wattn on the command line")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures speed, against ceilings measured on the same device
    Bench(bench::Args),
    /// Checks the whole catalogue against the oracle on a device
    Verify(verify::Args),
    /// Runs case files and prints the error of each expected output
    Replay(replay::Args),
    /// Lists adapters, with what decides which kernel they run
    Devices(devices::Args),
    /// Runs all tests; on Linux without a GPU, on a software driver that it installs
    Test(test::Args),
    /// Formatting, lints, documentation, packages
    Check,
    /// Fetches the weights that the examples run
    Model {
        /// Which model
        name: String,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(args),
        Command::Verify(args) => verify::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Check => check::run(),
        Command::Model { name } => model::run(&name),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
