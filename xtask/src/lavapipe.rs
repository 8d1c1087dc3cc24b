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

/// All adapters, of which there is at least one: where there is none, a software one is installed.
pub(crate) fn ensure_adapter() -> Result<Vec<Adapter>> {
    // Each look makes an instance of its own, which loads the drivers that are there by then.
    let found = adapters(None);
    if !found.is_empty() {
        return Ok(found);
    }
    ensure!(cfg!(target_os = "linux"), "wgpu finds no adapter; a GPU with a Vulkan, Metal or DX12 driver is needed");
    let Some((_, commands)) = MANAGERS.iter().find(|(program, _)| is_there(program)) else {
        bail!("wgpu finds no adapter; install Mesa's software Vulkan driver (lavapipe)");
    };
    let prefix: &[&str] = if is_root() { &[] } else { &["sudo", "-n"] };
    let by_hand: Vec<String> = commands.iter().map(|command| format!("sudo {}", command.join(" "))).collect();
    let by_hand = by_hand.join(" && ");
    ensure!(
        is_root() || succeeds("sudo", &["-n", "true"]),
        "wgpu finds no adapter, and installing one takes a password. Run:\n    {by_hand}"
    );
    for command in *commands {
        install(&[prefix, command].concat()).map_err(|error| anyhow!("{error:#}; by hand:\n    {by_hand}"))?;
    }
    let found = adapters(None);
    ensure!(
        !found.is_empty(),
        "the software Vulkan driver is installed, and wgpu still finds no adapter; \
         do WGPU_BACKEND, VK_DRIVER_FILES or VK_ICD_FILENAMES point elsewhere?"
    );
    Ok(found)
}

fn install(command: &[&str]) -> Result<()> {
    println!("no adapter, so: {}", command.join(" "));
    let status = Command::new(command[0]).args(&command[1..]).env("DEBIAN_FRONTEND", "noninteractive").status();
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
