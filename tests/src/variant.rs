//! What is forced when a case runs: a kernel, and where its menu has several, a shape.

use std::fmt;

use anyhow::Result;
use wattn::{Attention, Capabilities, DeviceKind, Engine, Kernel, PlanError, Shape};
use wattn_cases::SoftmaxCase;
use wattn_shaders::table;

use crate::problem::{attention, extent};

/// A kernel to force, in the shape for this device or in that for GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// Whether in the shape for GPUs, on a device that has its own choice.
    pub gpu_shape: bool,
}

impl Variant {
    /// All variants worth testing on a device: every kernel; on CPU drivers, `tile-universal` in the shape of GPUs too, so that what
    /// GPUs run is executed somewhere. (`tile-subgroup` has no other.)
    #[must_use]
    pub fn all(device: &Capabilities) -> Vec<Self> {
        let own = |kernel| Self { kernel, gpu_shape: false };
        let mut all = Kernel::ALL.map(own).to_vec();
        if device.kind == DeviceKind::Cpu {
            all.push(Self { kernel: Kernel::TileUniversal, gpu_shape: true });
        }
        all
    }

    /// The operator, with this forced.
    #[must_use]
    pub fn force(self, attention: Attention) -> Attention {
        let forced = attention.kernel(self.kernel);
        let shape = Shape::Tile(table::gpu_tiles(attention.head_dim().value())[0]);
        if self.gpu_shape { forced.shape(shape) } else { forced }
    }

    /// Why this cannot serve the case on the engine's device, if it cannot. Other refusals are for the run to report.
    ///
    /// # Errors
    /// Sizes that no kernel takes.
    pub fn refusal(self, engine: &Engine, case: &SoftmaxCase) -> Result<Option<String>> {
        match engine.plan(&self.force(attention(case)?), extent(case)?) {
            Err(PlanError::Kernel { reason, .. }) => Ok(Some(reason)),
            _ => Ok(None),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        if self.gpu_shape { f.write_str("-gpu-shape") } else { Ok(()) }
    }
}
