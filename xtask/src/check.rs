//! `cargo xtask check`: what can be said about the code without running it on a device.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::report::root;

/// The target of browsers, whose wgpu objects stay on their thread.
const BROWSER: &str = "wasm32-unknown-unknown";

/// Formatting, lints, documentation, that the library compiles for browsers, and that each published crate packs.
pub(crate) fn run() -> Result<()> {
    step(&["fmt", "--all", "--check"], &[])?;
    step(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &[])?;
    step(&["doc", "--workspace", "--no-deps", "--quiet"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    if installed(BROWSER)? {
        let browser = ["clippy", "--package", "wattn", "--package", "wattn-browser", "--target", BROWSER, "--quiet"];
        step(&[&browser[..], &["--", "-D", "warnings"]].concat(), &[])?;
    } else {
        println!("> not checked: {BROWSER}, which `rustup target add {BROWSER}` installs");
    }
    let private = unpublished()?;
    let mut package = vec!["package", "--workspace", "--no-verify", "--allow-dirty", "--quiet"];
    package.extend(private.iter().flat_map(|name| ["--exclude", name]));
    step(&package, &[])
}

/// Runs cargo in the workspace, prints the command and how long it took.
pub(crate) fn step(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let shown = format!("cargo {}", arguments.join(" "));
    println!("> {shown}");
    let start = Instant::now();
    let status = cargo().args(arguments).envs(environment.iter().copied()).status().context("cargo does not start")?;
    println!("  {:.1} s, {status}", start.elapsed().as_secs_f64());
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// cargo, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Whether Rust's libraries for `target` are here.
fn installed(target: &str) -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output().context("rustc")?;
    Ok(output.status.success() && Path::new(String::from_utf8(output.stdout)?.trim()).is_dir())
}

/// The packages with `publish = false`.
fn unpublished() -> Result<Vec<String>> {
    let mut metadata = cargo();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]).stderr(Stdio::inherit());
    let output = metadata.output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let private = packages.iter().filter(|package| package["publish"].as_array().is_some_and(Vec::is_empty));
    Ok(private.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect())
}
