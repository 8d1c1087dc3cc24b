//! What operators have in common: an engine plans them.

use wattn_scheduler::shaders::Key;
use wattn_scheduler::{Attention, AttentionBackward, Based, Decode, Extent, Lightning, PlanError, Tokens};

use crate::backward_plan::BackwardPlan;
use crate::based_plan::BasedPlan;
use crate::decode_plan::DecodePlan;
use crate::device_work::DeviceWork;
use crate::engine::Engine;
use crate::linear_plan::LinearPlan;
use crate::plan::Plan;
#[cfg(feature = "tune")]
use crate::tune::plan as tuned;

/// An operator that an [`Engine`] plans: [`Attention`], [`AttentionBackward`], [`Decode`], [`Lightning`] or [`Based`].
pub trait Operator {
    /// How much there is to do.
    type Extent;
    /// What comes out: which kernels run, and what that costs.
    type Plan: Prepared;

    /// Plans this operator; see [`Engine::plan`].
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    fn plan_on(&self, engine: &Engine, extent: Self::Extent) -> Result<Self::Plan, PlanError>;
}

impl Operator for Attention {
    type Extent = Extent;
    type Plan = Plan;

    fn plan_on(&self, engine: &Engine, extent: Extent) -> Result<Plan, PlanError> {
        let plan = |operator: &Self| wattn_scheduler::Plan::new(operator, extent, engine.capabilities());
        Ok(Plan::new(engine.clone(), tuned(engine, self, extent, plan, |plan| &mut plan.reason)?))
    }
}

impl Operator for Decode {
    type Extent = Extent;
    type Plan = DecodePlan;

    fn plan_on(&self, engine: &Engine, extent: Extent) -> Result<DecodePlan, PlanError> {
        let plan = |operator: &Self| wattn_scheduler::DecodePlan::new(operator, extent, engine.capabilities());
        Ok(DecodePlan::new(engine.clone(), tuned(engine, self, extent, plan, |plan| &mut plan.reason)?))
    }
}

impl Operator for AttentionBackward {
    type Extent = Extent;
    type Plan = BackwardPlan;

    fn plan_on(&self, engine: &Engine, extent: Extent) -> Result<BackwardPlan, PlanError> {
        let plan = |operator: &Self| wattn_scheduler::BackwardPlan::new(operator, extent, engine.capabilities());
        Ok(BackwardPlan::new(engine.clone(), tuned(engine, self, extent, plan, |plan| &mut plan.reason)?))
    }
}

impl Operator for Lightning {
    type Extent = Tokens;
    type Plan = LinearPlan;

    fn plan_on(&self, engine: &Engine, extent: Tokens) -> Result<LinearPlan, PlanError> {
        let plan = |operator: &Self| wattn_scheduler::LinearPlan::new(operator, extent, engine.capabilities());
        Ok(LinearPlan::new(engine.clone(), tuned(engine, self, extent, plan, |plan| &mut plan.reason)?))
    }
}

impl Operator for Based {
    type Extent = Tokens;
    type Plan = BasedPlan;

    fn plan_on(&self, engine: &Engine, extent: Tokens) -> Result<BasedPlan, PlanError> {
        let plan = |operator: &Self| wattn_scheduler::BasedPlan::new(operator, extent, engine.capabilities());
        Ok(BasedPlan::new(engine.clone(), tuned(engine, self, extent, plan, |plan| &mut plan.reason)?))
    }
}

/// Nothing was tuned.
#[cfg(not(feature = "tune"))]
fn tuned<O: wattn_scheduler::Tunable, P>(
    _: &Engine,
    operator: &O,
    _: O::Size,
    plan: impl Fn(&O) -> Result<P, PlanError>,
    _: impl Fn(&mut P) -> &mut String,
) -> Result<P, PlanError> {
    plan(operator)
}

/// A plan whose pipelines can be compiled ahead.
pub trait Prepared {
    /// Its pipelines.
    fn keys(&self) -> Vec<Key>;
}

impl Prepared for Plan {
    fn keys(&self) -> Vec<Key> {
        vec![Key::Flash(self.details().key)]
    }
}

impl Prepared for DecodePlan {
    fn keys(&self) -> Vec<Key> {
        let plan = self.details();
        let tiles = plan.tiles.map(Key::Flash);
        [Key::Split(plan.split), Key::Merge(plan.merge)].into_iter().chain(tiles).collect()
    }
}

impl Prepared for DeviceWork {
    fn keys(&self) -> Vec<Key> {
        self.keys().to_vec()
    }
}

impl Prepared for BackwardPlan {
    fn keys(&self) -> Vec<Key> {
        self.details().keys().collect()
    }
}

impl Prepared for LinearPlan {
    fn keys(&self) -> Vec<Key> {
        self.details().keys().map(Key::Linear).collect()
    }
}

impl Prepared for BasedPlan {
    fn keys(&self) -> Vec<Key> {
        self.details().keys().collect()
    }
}
