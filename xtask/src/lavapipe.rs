//! Where wgpu finds no adapter on Linux: installs Mesa's software Vulkan driver.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use wattn::wgpu::Adapter;
use wattn_tests::adapters;

/// A package manager, by the program that stands for it, and what it runs to install the driver.
const MANAGERS: [(&str, &[&[&str]]); 5] = [
    ("apt-get", &[&["apt-get", "update"], &["apt-get", "install", "-y", "mesa-vulkan-drivers"]]),
    ("dnf", &[&["dnf", "install", "-y", "mesa-vulkan-drivers"]]),
    ("pacman", &[&["pacman", "-S", "--noconfirm", "vulkan-swrast"]]),
    ("zypper", &[&["zypper", "--non-interactive", "install", "libvulkan_lvp"]]),
    ("apk", &[&["apk", "add", "mesa-vulkan-swrast", "vulkan-loader"]]),
];

/// What keeps wgpu, or the loader of Vulkan drivers, from adapters that are there.
const NARROWING: [&str; 5] =
    ["WGPU_BACKEND", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_LOADER_DRIVERS_SELECT", "VK_LOADER_DRIVERS_DISABLE"];

/// All adapters, of which there is at least one: where there is none, a software one is installed, unless `wanted` or the environment
/// says which one must be there.
pub(crate) fn ensure_adapter(wanted: Option<&str>) -> Result<Vec<Adapter>> {
    // Each look makes an instance of its own, which loads the drivers that are there by then.
    let found = adapters(None);
    if !found.is_empty() {
        return Ok(found);
    }
    ensure!(cfg!(target_os = "linux"), "wgpu finds no adapter; a GPU with a Vulkan, Metal or DX12 driver is needed");
    let value = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    // The driver that would be installed may be named before it is there.
    let narrows = |value: &String| !value.is_empty() && !value.contains("lvp");
    let set = NARROWING.into_iter().filter_map(|name| Some(format!("{name}={}", value(name).filter(narrows)?)));
    let narrowed: Vec<String> = wanted.map(|name| format!("--adapter {name}")).into_iter().chain(set).collect();
    ensure!(
        narrowed.is_empty(),
        "wgpu finds no adapter, and none is installed since this says which one is wanted: {}",
        narrowed.join(", ")
    );
    let Some((_, commands)) = MANAGERS.iter().find(|(program, _)| is_there(program)) else {
        bail!("wgpu finds no adapter; install Mesa's software Vulkan driver (lavapipe)");
    };
    // sudo drops what the environment says.
    let prefix: &[&str] = if is_root() { &["env"] } else { &["sudo", "-n", "env"] };
    let prefix = [prefix, &["DEBIAN_FRONTEND=noninteractive"]].concat();
    let by_hand: Vec<String> = commands.iter().map(|command| format!("sudo {}", command.join(" "))).collect();
    let by_hand = by_hand.join("; ");
    ensure!(
        is_root() || succeeds("sudo", &["-n", "true"]),
        "wgpu finds no adapter, and installing one takes a password. Run:\n    {by_hand}"
    );
    let (install, before) = commands.split_last().context("each manager has a command")?;
    for command in before {
        // Lists of packages that cannot all be updated may do.
        if let Err(error) = run(&[&prefix, *command].concat()) {
            println!("{error:#}");
        }
    }
    run(&[&prefix, *install].concat()).map_err(|error| anyhow!("{error:#}; by hand:\n    {by_hand}"))?;
    let found = adapters(None);
    ensure!(!found.is_empty(), "the software Vulkan driver is installed, and wgpu still finds no adapter");
    Ok(found)
}

fn run(command: &[&str]) -> Result<()> {
    println!("no adapter, so: {}", command.join(" "));
    let status = Command::new(command[0]).args(&command[1..]).status();
    let status = status.with_context(|| command.join(" "))?;
    ensure!(status.success(), "{}: {status}", command.join(" "));
    Ok(())
}

fn is_there(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
