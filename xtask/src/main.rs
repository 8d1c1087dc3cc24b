//! Stand-in.
mod adapter;
mod bench;
use clap::Parser;
#[derive(Parser)]
enum Command {
    Bench(bench::Args),
}
fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Bench(args) => bench::run(args),
    }
}
