//! How long a plan should take: its FLOPs and bytes against what the device reaches, and what of that a kernel does.

use std::fmt;

use wattn_shaders::{Kernel, Shape};

use crate::attention::{Attention, Causal, Extent};
use crate::capabilities::{Capabilities, DeviceKind};

/// What a device reaches: measured (see [`Capabilities::rates`]), else guessed from its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rates {
    /// Floating point operations a second, of multiply-adds in f32.
    pub flops: u64,
    /// Bytes a second, read plus written by a copy.
    pub bandwidth: u64,
    /// Nanoseconds that a dispatch takes without any work.
    pub dispatch_ns: u32,
}

/// An estimate of a plan's time. Prints itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Seconds.
    pub seconds: f64,
    /// Whether the device's rates were measured.
    pub measured: bool,
}

/// What a kernel does, as far as its share of the device's rates depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Forward,
    FewQueries,
    Backward,
    Linear,
    Decay,
    Based,
    BasedBackward,
}

/// What a plan takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
    pub(crate) dispatches: u64,
    /// Of the device's FLOPs, what the kernels reach.
    pub(crate) share: f64,
}

/// Of a copy's bandwidth, what kernels that only read reach: on CPU drivers each load is an instruction a lane.
fn bandwidth_share(kind: DeviceKind) -> f64 {
    if kind == DeviceKind::Cpu { 0.45 } else { 0.8 }
}

/// Of the FMA rate, what a kernel reaches on long problems. On CPU drivers those of `broadcast` and of the forward pass lie between what
/// `cargo xtask bench` measured on a Zen 4 with 8 and with 16 lanes (Mesa 22.3's lavapipe); those of other kernels, which run there only
/// when pinned, and of GPUs, which have not been measured yet, are guesses: of few queries, from the instructions that NVK takes in tiles
/// for a key.
pub(crate) fn share(task: Task, kernel: Kernel, shape: Option<Shape>, kind: DeviceKind) -> f64 {
    if kind != DeviceKind::Cpu {
        return match (task, kernel) {
            (Task::FewQueries, Kernel::TileUniversal) => 0.2,
            (Task::Backward | Task::BasedBackward, _) => 0.3,
            _ => 0.4,
        };
    }
    let rows = kernel == Kernel::Broadcast || matches!(shape, Some(Shape::Lanes(_)));
    match (task, kernel) {
        (Task::Forward | Task::FewQueries, Kernel::Broadcast) => 0.45,
        (Task::Forward, _) if rows => 0.22,
        (Task::Forward | Task::FewQueries, _) => 0.035,
        (Task::Backward, Kernel::Broadcast) => 0.26,
        (Task::Backward, _) if rows => 0.13,
        (Task::Backward, _) => 0.03,
        (Task::Linear, Kernel::Broadcast) => 0.19,
        (Task::Linear, _) => 0.045,
        (Task::Decay, Kernel::Broadcast) => 0.12,
        (Task::Decay, _) => 0.04,
        (Task::Based, Kernel::Broadcast) => 0.22,
        (Task::Based, _) => 0.05,
        (Task::BasedBackward, Kernel::Broadcast) => 0.09,
        (Task::BasedBackward, _) => 0.03,
    }
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(crate) fn estimate(self, device: &Capabilities) -> Estimate {
        let rates = rates(device);
        let computing = self.flops as f64 / (rates.flops as f64 * self.share);
        let moving = self.bytes as f64 / (rates.bandwidth as f64 * bandwidth_share(device.kind));
        let starting = self.dispatches as f64 * f64::from(rates.dispatch_ns) * 1e-9;
        Estimate { seconds: computing.max(moving) + starting, measured: device.rates.is_some() }
    }
}

/// Rows that a kernel of few queries multiplies by a key and a value in f16 while the next ones are read.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "an estimate")]
pub(crate) fn rows_while_reading(kernel: Kernel, device: &Capabilities) -> u32 {
    let rates = rates(device);
    // A number has 2 bytes, and takes 2 FLOPs a row.
    let multiplied = rates.flops as f64 * share(Task::FewQueries, kernel, None, device.kind);
    (multiplied / (rates.bandwidth as f64 * bandwidth_share(device.kind))) as u32
}

/// What was measured of the device, or a guess.
fn rates(device: &Capabilities) -> Rates {
    device.rates.unwrap_or_else(|| guess(device.kind))
}

fn guess(kind: DeviceKind) -> Rates {
    match kind {
        DeviceKind::Discrete => Rates { flops: 10_000_000_000_000, bandwidth: 400_000_000_000, dispatch_ns: 5_000 },
        DeviceKind::Integrated | DeviceKind::Other => {
            Rates { flops: 1_000_000_000_000, bandwidth: 50_000_000_000, dispatch_ns: 10_000 }
        }
        DeviceKind::Cpu => Rates { flops: 100_000_000_000, bandwidth: 10_000_000_000, dispatch_ns: 30_000 },
    }
}

/// Scores that tiles of `tile` queries walk, of which `visible` are seen: where a side of the visible range moves from query to query,
/// a tile walks the union of its queries' ranges.
pub(crate) fn walked_scores(attention: &Attention, extent: Extent, tile: u32, visible: u64) -> u64 {
    let right = attention.causal != Causal::No || attention.window.1.is_some();
    let sides = u64::from(right) + u64::from(attention.window.0.is_some());
    let sequences = if extent.packed { 1 } else { u64::from(extent.batch) };
    let queries = sequences.saturating_mul(extent.queries.into());
    let beside = queries.saturating_mul(u64::from(tile.saturating_sub(1)) / 2).saturating_mul(sides);
    let most = queries.saturating_mul(extent.keys.into()).max(visible);
    visible.saturating_add(beside).min(most)
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = if self.measured { "from measured rates" } else { "from the kind of device alone" };
        write!(f, "{:.3} ms ({source})", self.seconds * 1e3)
    }
}
