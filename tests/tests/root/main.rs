//! Every problem of the catalogue and every case file, on every adapter, by every kernel; and the harness, encoding, refusals and
//! devices themselves. A trial's name says all: `vulkan/llvmpipe/broadcast/softmax/plain`.

#![forbid(unsafe_code)]

mod backward_calls;
mod based;
mod based_calls;
mod cache;
mod catalogue;
mod decode;
mod device;
mod device_lengths;
mod encode;
mod errors;
mod golden;
mod gpu;
mod harness;
mod host;
mod linear;
mod linear_calls;
mod tune;

use std::process::ExitCode;
use std::sync::Arc;

use gpu::Gpu;
use libtest_mimic::{Arguments, Trial};
use wattn::Driver;

/// Pipelines that the tests of one operator may need on one adapter (where it has two devices, on both together): few, since some
/// drivers take seconds for each.
const PIPELINES: usize = 130;
/// Softmax attention, its backward pass, few queries over many keys, linear attention with decay, BASED.
const OPERATORS: usize = 5;
/// Trials by each kernel and schedule, or split of few queries, that pass at least on a software driver with subgroups of 8 or 16 lanes: a
/// kernel that came to be refused would show as ignored trials alone. A tenth fewer than there are.
const FLOORS: [(&str, usize); 11] = [
    ("broadcast", 280),
    ("broadcast-segments", 125),
    ("broadcast-split-80", 26),
    ("broadcast-split-device", 26),
    ("tile-subgroup", 280),
    ("tile-subgroup-segments", 135),
    ("tile-universal", 230),
    ("tile-universal-gpu-shape", 155),
    ("tile-universal-segments", 135),
    ("tile-universal-split-80", 27),
    ("tile-universal-split-device", 27),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Software drivers compile on one thread a device: of eight tests at a time, each on one of two devices, either has some to compile.
    // Most of the others wait.
    args.test_threads = args.test_threads.or(Some(8));
    let gpus = match Gpu::all() {
        Ok(gpus) => gpus,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    if gpus.is_empty() {
        return without_gpu();
    }
    let cases = catalogue::cases();
    let files = golden::files();
    let linear = linear::cases();
    let based = based::cases();
    let trials: Vec<Trial> = gpus
        .iter()
        .flat_map(|gpu| {
            let all = [
                harness::trials(gpu),
                errors::trials(gpu),
                host::trials(gpu),
                encode::trials(gpu),
                device::trials(gpu),
                golden::trials(gpu, &files),
                catalogue::trials(gpu, &cases),
                decode::trials(gpu),
                cache::trials(gpu),
                device_lengths::trials(gpu),
                backward_calls::trials(gpu),
                linear::trials(gpu, &linear),
                linear_calls::trials(gpu),
                based::trials(gpu, &based),
                based_calls::trials(gpu),
                tune::trials(gpu),
            ];
            all.into_iter().flatten()
        })
        .collect();

    let conclusion = libtest_mimic::run(&args, trials);
    if args.list {
        return conclusion.exit_code();
    }
    let complete = args.filter.is_none() && args.skip.is_empty() && !args.ignored;
    // Those of all are printed, whichever fails.
    let failed = gpus.iter().filter(|gpu| !totals(gpu, complete)).count();
    if failed == 0 { conclusion.exit_code() } else { ExitCode::FAILURE }
}

/// Prints what ran on a device. Whether it is enough can be said of a complete run only.
fn totals(gpu: &Arc<Gpu>, complete: bool) -> bool {
    let (elements, pipelines) = (gpu.compared(), gpu.pipelines());
    println!("{}: {elements} elements compared, {pipelines} pipelines compiled", gpu.label);
    let mut pass = true;
    if complete && elements == 0 {
        println!("{}: nothing was compared", gpu.label);
        pass = false;
    }
    let device = gpu.engine.capabilities();
    let known =
        matches!(device.driver, Driver::Llvmpipe { .. }) && device.subgroups.is_some_and(|(lanes, _)| lanes >= 8);
    for (how, floor) in FLOORS.into_iter().filter(|_| complete && known) {
        let ran = gpu.ran(how);
        if ran < floor {
            println!("{}: {ran} trials by {how} passed, at least {floor} must", gpu.label);
            pass = false;
        }
    }
    if complete && pipelines > PIPELINES * OPERATORS {
        println!("{}: more than {PIPELINES} pipelines an operator", gpu.label);
        pass = false;
    }
    pass
}

fn without_gpu() -> ExitCode {
    if std::env::var_os("WATTN_NO_GPU").is_some_and(|value| value == "1") {
        eprintln!("\nWATTN_NO_GPU=1: NO ADAPTER, SO NOTHING RAN ON A GPU\n");
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "wgpu finds no adapter. `cargo xtask test` installs a software one on Linux; WATTN_NO_GPU=1 goes without."
    );
    ExitCode::FAILURE
}
