//! What is forced when a case runs: a kernel, and where its menu has several, a shape.

use std::fmt;

use anyhow::Result;
use wattn::{Attention, Based, Capabilities, DeviceKind, Kernel, Lightning, PlanError, Schedule, Shape};
use wattn_cases::{BasedCase, LinearCase, SoftmaxCase, Storage};
use wattn_scheduler::{BackwardPlan, BasedPlan, LinearPlan, Plan};
use wattn_shaders::table;

use crate::backward::attention_backward;
use crate::based::{based, based_backward, based_tokens};
use crate::linear::{lightning, lightning_backward, tokens};
use crate::problem::{attention, extent};

/// A kernel to force, in the shape for this device or in that for GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The kernel.
    pub kernel: Kernel,
    /// Whether in the shape for GPUs, on a device that has its own choice.
    pub gpu_shape: bool,
    /// How linear attention shares out tokens.
    pub schedule: Option<Schedule>,
}

impl From<Kernel> for Variant {
    /// A kernel, all else left to the device.
    fn from(kernel: Kernel) -> Self {
        Self { kernel, gpu_shape: false, schedule: None }
    }
}

/// The kernels that every operator has, in every storage.
pub const EVERY: [Kernel; 3] = [Kernel::TileUniversal, Kernel::TileSubgroup, Kernel::Broadcast];

impl Variant {
    /// All variants worth testing on a device: every kernel; on CPU drivers, `tile-universal` in the shape of GPUs too, so that what
    /// GPUs run is executed somewhere. (`tile-subgroup` has no other.)
    #[must_use]
    pub fn all(device: &Capabilities) -> Vec<Self> {
        let mut all = EVERY.map(Self::from).to_vec();
        if device.kind == DeviceKind::Cpu {
            all.push(Self { gpu_shape: true, ..Kernel::TileUniversal.into() });
        }
        all
    }

    /// [All](Self::all) that are worth testing on a case: `matrix` too where it is in f16.
    #[must_use]
    pub fn of(case: &SoftmaxCase, device: &Capabilities) -> Vec<Self> {
        let mut all = Self::all(device);
        if [case.q.storage, case.k.storage] == [Storage::F16; 2] {
            all.push(Kernel::Matrix.into());
        }
        all
    }

    /// All variants of linear attention, BASED too: every kernel in both schedules.
    #[must_use]
    pub fn linear() -> Vec<Self> {
        EVERY.into_iter().flat_map(Self::schedules).collect()
    }

    /// [These](Self::linear), and `matrix` too where q, and k and v are in f16.
    #[must_use]
    pub fn linear_of(storage: [Storage; 2]) -> Vec<Self> {
        let matrix = (storage == [Storage::F16; 2]).then(|| Self::schedules(Kernel::Matrix));
        Self::linear().into_iter().chain(matrix.into_iter().flatten()).collect()
    }

    /// A kernel in both schedules of linear attention.
    #[must_use]
    pub fn schedules(kernel: Kernel) -> [Self; 2] {
        [Schedule::Sequential, Schedule::Segments].map(|schedule| Self { schedule: Some(schedule), ..kernel.into() })
    }

    /// The operator, with this forced.
    #[must_use]
    pub fn force_linear(self, lightning: Lightning) -> Lightning {
        let forced = lightning.kernel(self.kernel);
        match self.schedule {
            Some(schedule) => forced.schedule(schedule),
            None => forced,
        }
    }

    /// Why this cannot serve the case on a device, forward or backward, if it cannot. Other refusals are for the run to report.
    ///
    /// # Errors
    /// Sizes that no kernel takes.
    pub fn linear_refusal(self, device: &Capabilities, case: &LinearCase) -> Result<Option<String>> {
        let passes = [Some(lightning(case)?), if case.has_backward() { Some(lightning_backward(case)?) } else { None }];
        for lightning in passes.into_iter().flatten() {
            if let Err(PlanError::Kernel { reason, .. }) =
                LinearPlan::new(&self.force_linear(lightning), tokens(case)?, device)
            {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    /// The operator, with this forced.
    #[must_use]
    pub fn force_based(self, based: Based) -> Based {
        let forced = based.kernel(self.kernel);
        match self.schedule {
            Some(schedule) => forced.schedule(schedule),
            None => forced,
        }
    }

    /// Why this cannot serve the case on a device, forward or backward, if it cannot. Other refusals are for the run to report.
    ///
    /// # Errors
    /// Sizes that no kernel takes.
    pub fn based_refusal(self, device: &Capabilities, case: &BasedCase) -> Result<Option<String>> {
        let passes = [Some(based(case)?), if case.has_backward() { Some(based_backward(case)?) } else { None }];
        for based in passes.into_iter().flatten() {
            if let Err(PlanError::Kernel { reason, .. }) =
                BasedPlan::new(&self.force_based(based), based_tokens(case)?, device)
            {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    /// The operator, with this forced.
    #[must_use]
    pub fn force(self, attention: Attention) -> Attention {
        let forced = attention.kernel(self.kernel);
        let shape = Shape::Tile(table::gpu_tile(attention.head_dim().value()));
        if self.gpu_shape { forced.shape(shape) } else { forced }
    }

    /// Why this cannot serve the case on a device, if it cannot. Other refusals are for the run to report.
    ///
    /// # Errors
    /// Sizes that no kernel takes.
    pub fn refusal(self, device: &Capabilities, case: &SoftmaxCase) -> Result<Option<String>> {
        if let Err(PlanError::Kernel { reason, .. }) = Plan::new(&self.force(attention(case)?), extent(case)?, device) {
            return Ok(Some(reason));
        }
        let backward = attention_backward(case, Some(self), &[])?;
        match BackwardPlan::new(&backward, extent(case)?, device) {
            Err(PlanError::Kernel { reason, .. }) if case.has_backward() => Ok(Some(format!("backward: {reason}"))),
            _ => Ok(None),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        if self.gpu_shape {
            f.write_str("-gpu-shape")?;
        }
        if self.schedule == Some(Schedule::Segments) { f.write_str("-segments") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattn_cases::{BasedRecipe, LinearRecipe, Recipe};

    /// Of all variants those that such a device can have: of softmax attention with gradients, of linear attention, of BASED.
    fn served(subgroups: Option<(u32, u32)>, kind: DeviceKind) -> [Vec<String>; 3] {
        let device = Capabilities {
            kind,
            subgroups,
            workgroup_bytes: 32 << 10,
            workgroup_invocations: 1024,
            ..Capabilities::webgpu_defaults()
        };
        let softmax = Recipe { backward: true, ..Recipe::default() }.build();
        let (linear, based) = (LinearRecipe::default().build(), BasedRecipe::default().build());
        let names = |variants: Vec<Variant>, refusal: &dyn Fn(Variant) -> Result<Option<String>>| {
            let serves = |variant: &Variant| refusal(*variant).expect("a problem that kernels take").is_none();
            variants.into_iter().filter(serves).map(|variant| variant.to_string()).collect()
        };
        [
            names(Variant::all(&device), &|variant| variant.refusal(&device, &softmax)),
            names(Variant::linear(), &|variant| variant.linear_refusal(&device, &linear)),
            names(Variant::linear(), &|variant| variant.based_refusal(&device, &based)),
        ]
    }

    #[test]
    fn a_device_runs_what_its_subgroups_allow() {
        let universal = ["tile-universal"];
        let tiles = ["tile-universal", "tile-subgroup"];
        let every = ["tile-universal", "tile-subgroup", "broadcast"];
        let on_cpus = ["tile-universal", "tile-subgroup", "broadcast", "tile-universal-gpu-shape"];
        for (subgroups, kind, softmax, linear) in [
            (None, DeviceKind::Integrated, &universal[..], &universal[..]),
            (Some((4, 16)), DeviceKind::Integrated, &universal, &universal),
            (Some((32, 32)), DeviceKind::Discrete, &tiles, &tiles),
            (Some((32, 64)), DeviceKind::Discrete, &tiles, &tiles),
            (Some((16, 16)), DeviceKind::Integrated, &every, &every),
            (Some((8, 8)), DeviceKind::Cpu, &on_cpus, &every),
        ] {
            let [got, ours, based] = served(subgroups, kind);
            assert_eq!(got, softmax, "{subgroups:?}");
            let both: Vec<String> =
                linear.iter().flat_map(|name| [(*name).into(), format!("{name}-segments")]).collect();
            assert_eq!([ours, based], [both.clone(), both], "{subgroups:?}");
        }
    }
}
