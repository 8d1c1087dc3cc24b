//! What is forced when a case runs: a kernel, and where its menu has several, a shape.

use std::fmt;

use anyhow::Result;
use wattn::{Attention, Capabilities, DeviceKind, Engine, Kernel, PlanError, Shape};
use wattn_cases::SoftmaxCase;
use wattn_shaders::table;

use crate::problem::{attention, extent};

/// A kernel to force, in the shape for this device or in the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// The shape, if not the device's own choice.
    pub shape: Option<Shape>,
}

impl Variant {
    /// All variants worth testing on a device: every kernel; on CPU drivers, the tile kernels in the shape of GPUs too, so that
    /// what GPUs run is executed somewhere.
    #[must_use]
    pub fn all(device: &Capabilities) -> Vec<Self> {
        let gpu = Some(Shape::Tile(table::TILE_GPU));
        let own = |kernel| Self { kernel, shape: None };
        match device.kind {
            DeviceKind::Cpu => vec![
                own(Kernel::Broadcast),
                own(Kernel::TileUniversal),
                Self { kernel: Kernel::TileUniversal, shape: gpu },
                Self { kernel: Kernel::TileSubgroup, shape: gpu },
            ],
            _ => Kernel::ALL.map(own).to_vec(),
        }
    }

    /// The operator, with this forced.
    #[must_use]
    pub fn force(self, attention: Attention) -> Attention {
        let forced = attention.kernel(self.kernel);
        self.shape.map_or(forced, |shape| forced.shape(shape))
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
        if self.shape.is_some() { f.write_str("-gpu-shape") } else { Ok(()) }
    }
}
