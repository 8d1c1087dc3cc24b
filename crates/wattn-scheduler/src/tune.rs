//! What tuning chooses from: kernels of the menu, with the shapes and schedules that they have, the most promising first.

use std::fmt;

use wattn_shaders::table::{self, ROWS_CPU};
use wattn_shaders::{Kernel, LaneShape, MatrixShape, Shape, TileShape};

use crate::attention::{Attention, Causal, Extent};
use crate::backward::AttentionBackward;
use crate::backward_plan::BackwardPlan;
use crate::based::Based;
use crate::based_plan::BasedPlan;
use crate::capabilities::{Capabilities, DeviceKind};
use crate::choose;
use crate::cost::Task;
use crate::decode::{Decode, Split};
use crate::decode_plan::{DecodePlan, busy, kernels};
use crate::decode_work::Splitting;
use crate::error::PlanError;
use crate::lightning::{Lightning, Pass, Schedule, Tokens};
use crate::linear_plan::{LinearPlan, registers};
use crate::plan::Plan;
use crate::quirks::{self, Design};
use crate::work;

/// Choices that are worth a measurement, at most.
const MOST: usize = 6;

/// A kernel, in a shape where its menu has several, of linear attention in a schedule, of few queries with so many stretches. Its
/// [`Display`](fmt::Display) is its name in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Choice {
    /// The kernel.
    pub kernel: Kernel,
    /// The shape, of softmax attention; of its backward pass none where each tile is as its result's dim asks for.
    pub shape: Option<Shape>,
    /// How tokens are shared out, of linear attention.
    pub schedule: Option<Schedule>,
    /// Into how many stretches a key/value head keys are split, of few queries: see [`Decode::split_into`].
    pub stretches: Option<u32>,
}

impl Choice {
    /// A kernel, and nothing else to choose.
    fn of(kernel: Kernel) -> Self {
        Self { kernel, shape: None, schedule: None, stretches: None }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        self.shape.map_or(Ok(()), |shape| write!(f, "/{shape}"))?;
        self.schedule.map_or(Ok(()), |schedule| write!(f, "/{schedule}"))?;
        self.stretches.map_or(Ok(()), |stretches| write!(f, "/{stretches}-stretches"))
    }
}

/// An operator of which plans have a choice: [`Attention`], [`AttentionBackward`], [`Decode`], [`Lightning`] and
/// [`Based`].
pub trait Tunable: Clone {
    /// How much there is to do.
    type Size: Copy;

    /// The problem in words, but for what is pinned and for numbers that change no kernel. The batch, lengths and windows are rounded up
    /// to powers of two, so that what is like one another is one problem.
    fn problem(&self, extent: Self::Size) -> String;

    /// Whether the caller has made a choice.
    fn is_pinned(&self) -> bool;

    /// The same with this choice pinned.
    #[must_use]
    fn with(&self, choice: Choice) -> Self;

    /// What the menu has for this device and its driver is not kept from, whether or not it can serve. Nothing that would refuse calls
    /// which the planner's own choice takes.
    fn menu(&self, extent: Self::Size, device: &Capabilities) -> Vec<Choice>;

    /// What a plan chooses, and the seconds that it estimates.
    ///
    /// # Errors
    /// As planning, and making the work of a typical call.
    fn planned(&self, extent: Self::Size, device: &Capabilities) -> Result<(Choice, f64), PlanError>;

    /// What is worth a measurement: the plan's own choice, then others that can serve, the fastest by estimate first.
    ///
    /// # Errors
    /// As planning.
    fn candidates(&self, extent: Self::Size, device: &Capabilities) -> Result<Vec<Choice>, PlanError> {
        let (own, _) = self.planned(extent, device)?;
        let serves = |choice: Choice| self.with(choice).planned(extent, device).ok().filter(|found| found.0 == choice);
        let mut others: Vec<_> =
            self.menu(extent, device).into_iter().filter(|&choice| choice != own).filter_map(serves).collect();
        others.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok([own].into_iter().chain(others.into_iter().map(|found| found.0)).take(MOST).collect())
    }
}

impl Tunable for Attention {
    type Size = Extent;

    fn problem(&self, extent: Extent) -> String {
        softmax_problem("softmax attention", self, extent)
    }

    fn is_pinned(&self) -> bool {
        self.kernel.is_some() || self.shape.is_some()
    }

    fn with(&self, choice: Choice) -> Self {
        Self { kernel: Some(choice.kernel), shape: choice.shape, ..*self }
    }

    fn menu(&self, _extent: Extent, device: &Capabilities) -> Vec<Choice> {
        softmax_menu(self, Task::Forward, self.head_dim.value(), table::matrix_shape, device)
    }

    fn planned(&self, extent: Extent, device: &Capabilities) -> Result<(Choice, f64), PlanError> {
        let plan = Plan::new(self, extent, device)?;
        let choice = Choice { shape: Some(plan.key.shape), ..Choice::of(plan.key.kernel) };
        Ok((choice, plan.estimate.seconds))
    }
}

impl Tunable for AttentionBackward {
    type Size = Extent;

    fn problem(&self, extent: Extent) -> String {
        let gradients = [
            (self.bias_gradient, "+bias gradient"),
            (self.sinks_gradient, "+sinks gradient"),
            (self.slopes_gradient, "+slopes gradient"),
            (self.lse_gradient, "+lse gradient"),
        ];
        let gradients = gradients.into_iter().filter(|g| g.0).map(|g| g.1);
        gradients.fold(softmax_problem("softmax attention, backward", &self.attention, extent), |all, g| all + g)
    }

    fn is_pinned(&self) -> bool {
        self.attention.is_pinned()
    }

    fn with(&self, choice: Choice) -> Self {
        Self { attention: self.attention.with(choice), ..*self }
    }

    fn menu(&self, _extent: Extent, device: &Capabilities) -> Vec<Choice> {
        let (qk, value) = (self.attention.head_dim.qk(), self.attention.head_dim.value());
        let matrix = |side, subgroups| table::matrix_backward_shape(side, subgroups, qk, value);
        let pinned = softmax_menu(&self.attention, Task::Backward, qk.max(value), matrix, device);
        let unlike = table::gpu_tile(qk) != table::gpu_tile(value);
        let by_dim = [Kernel::TileSubgroup, Kernel::TileUniversal].into_iter().filter(|_| unlike);
        by_dim.map(Choice::of).chain(pinned).collect()
    }

    fn planned(&self, extent: Extent, device: &Capabilities) -> Result<(Choice, f64), PlanError> {
        let plan = BackwardPlan::new(self, extent, device)?;
        Ok((Choice { shape: plan.pinned_shape(), ..Choice::of(plan.kernel) }, plan.estimate.seconds))
    }
}

impl Tunable for Decode {
    type Size = Extent;

    fn problem(&self, extent: Extent) -> String {
        let cache = self.cache.map_or_else(String::new, |cache| {
            format!(", pages of {} in {}/{}", cache.page(), cache.k_storage(), cache.v_storage())
        });
        let cascade = if self.cascade { ", what is shared once" } else { "" };
        softmax_problem("softmax attention of few queries", &self.attention, extent) + &cache + cascade
    }

    fn is_pinned(&self) -> bool {
        // Stretches of fixed length keep a row's bits in any batch, which a kernel that is chosen by the batch would change.
        self.attention.is_pinned() || self.kernel.is_some() || self.split != Split::Device
    }

    fn with(&self, choice: Choice) -> Self {
        let split = choice.stretches.map_or(self.split, Split::Stretches);
        Self { kernel: Some(choice.kernel), split, ..*self }
    }

    fn menu(&self, extent: Extent, device: &Capabilities) -> Vec<Choice> {
        let Ok(own) = DecodePlan::new(self, extent, device) else { return Vec::new() };
        // What counts fewer queries as few attends more in tiles, and refuses them where lengths lie on the device.
        let counts_as_many = |kernel: Kernel| {
            let plan = DecodePlan::new(&self.with(Choice::of(kernel)), extent, device);
            plan.is_ok_and(|plan| plan.tiles.is_none() || plan.most_rows >= own.most_rows)
        };
        let allowed = |kernel: Kernel| kernel != Kernel::Matrix || choose::note_on_matrices(false, device).is_ok();
        let kernels = kernels(device).into_iter().filter(|&kernel| allowed(kernel) && counts_as_many(kernel));
        let kernels: Vec<_> = kernels.map(Choice::of).collect();
        let of = |n| kernels.iter().map(move |&choice| Choice { stretches: Some(n), ..choice });
        stretches(self, device).into_iter().flat_map(of).collect()
    }

    fn planned(&self, extent: Extent, device: &Capabilities) -> Result<(Choice, f64), PlanError> {
        let plan = DecodePlan::new(self, extent, device)?;
        let attention = &self.attention;
        let [sequences, queries, keys] = self.typical(extent);
        let sequence = |batch| {
            let offset = i64::from(keys) - i64::from(queries);
            work::sequence(attention, batch, (0, queries), (0, keys), i32::try_from(offset).unwrap_or(i32::MAX))
        };
        let sequences: Vec<_> = (0..sequences).map(sequence).collect();
        let work = |splitting: Splitting| splitting.work(sequences.clone(), &[], Vec::new(), extent.queries);
        let own = plan.checked(work(plan.splitting))?;
        // Stretches that get no shorter are no other choice.
        let like = |&busy: &u32| work(Splitting { busy, ..plan.splitting }).stretches == own.stretches;
        let stretches = stretches(self, device).into_iter().find(like).unwrap_or(plan.splitting.busy);
        let choice = Choice { stretches: Some(stretches), ..Choice::of(plan.split.kernel) };
        Ok((choice, plan.estimate(&own).seconds))
    }
}

impl Tunable for Lightning {
    type Size = Tokens;

    fn problem(&self, extent: Tokens) -> String {
        let decay = if self.is_gated() { "gates" } else { "slopes" };
        let gradient = if self.decay_gradient { "+decay gradient" } else { "" };
        let name = format!("linear attention with {decay}{gradient}");
        linear_problem(&name, self.pass, extent, self.heads, [self.dims.qk(), self.dims.value()])
            + &format!(", {}/{} {:?}", self.q, self.kv, self.access)
            + states(self.initial_state, self.final_state)
    }

    fn is_pinned(&self) -> bool {
        self.kernel.is_some() || self.schedule.is_some()
    }

    fn with(&self, choice: Choice) -> Self {
        Self { kernel: Some(choice.kernel), schedule: choice.schedule, ..self.clone() }
    }

    fn menu(&self, _extent: Tokens, device: &Capabilities) -> Vec<Choice> {
        linear_menu(Task::Linear, registers(self), device)
    }

    fn planned(&self, extent: Tokens, device: &Capabilities) -> Result<(Choice, f64), PlanError> {
        let plan = LinearPlan::new(self, extent, device)?;
        let kernel = plan.sweeps.first().map_or(Kernel::TileUniversal, |sweep| sweep.walk.kernel);
        Ok((Choice { schedule: Some(plan.schedule), ..Choice::of(kernel) }, plan.estimate.seconds))
    }
}

impl Tunable for Based {
    type Size = Tokens;

    fn problem(&self, extent: Tokens) -> String {
        let causal = if self.causal { "" } else { ", every query sees every key" };
        let normalize = if self.normalize { "" } else { ", without denominator" };
        linear_problem("BASED attention", self.pass, extent, self.heads, [self.dims.qk(), self.dims.value()])
            + &format!(", {}/{} {:?}{causal}{normalize}", self.q, self.kv, self.access)
            + states(self.initial_state, self.final_state)
    }

    fn is_pinned(&self) -> bool {
        self.kernel.is_some() || self.schedule.is_some()
    }

    fn with(&self, choice: Choice) -> Self {
        Self { kernel: Some(choice.kernel), schedule: choice.schedule, ..self.clone() }
    }

    fn menu(&self, _extent: Tokens, device: &Capabilities) -> Vec<Choice> {
        linear_menu(Task::Based, self.dims.qk(), device)
    }

    fn planned(&self, extent: Tokens, device: &Capabilities) -> Result<(Choice, f64), PlanError> {
        let plan = BasedPlan::new(self, extent, device)?;
        let choice = Choice { schedule: Some(plan.schedule), ..Choice::of(plan.kernel) };
        Ok((choice, plan.estimate.seconds))
    }
}

/// The problem of a pass of softmax attention.
fn softmax_problem(name: &str, attention: &Attention, extent: Extent) -> String {
    let Extent { batch, queries, keys, packed } = extent;
    let [batch, queries, keys] = [batch, queries, keys].map(round);
    let (heads, dim) = (attention.heads, attention.head_dim);
    let seen = match attention.causal {
        Causal::No => "",
        Causal::BottomRight => ", causal",
        Causal::TopLeft => ", causal top-left",
    };
    let side = |side: Option<u32>| side.map_or_else(|| "all".to_owned(), |n| round(n).to_string());
    let window = match attention.window {
        (None, None) => String::new(),
        (left, right) => format!(", window {} to {}", side(left), side(right)),
    };
    let options: String = attention.options.names().map(|name| format!("+{name}")).collect();
    format!(
        "{name} {}: heads {}/{}, head dim {}/{}, {}/{} {:?}{seen}{window}{options}",
        Extent { batch, queries, keys, packed },
        heads.query(),
        heads.key_value(),
        dim.qk(),
        dim.value(),
        attention.q,
        attention.kv,
        attention.access,
    )
}

/// Kernels in the shapes that a pass of softmax attention has, with tiles for a result of the `widest` dim.
fn softmax_menu(
    attention: &Attention,
    task: Task,
    widest: u32,
    matrices: impl Fn(u32, (u32, u32)) -> MatrixShape,
    device: &Capabilities,
) -> Vec<Choice> {
    let classes = [attention.head_dim.qk(), attention.head_dim.value()];
    let [head, value] = classes.map(|dim| table::dim_class(dim).unwrap_or(table::VALUE_SPLIT));
    let of = |kernel: Kernel, shapes: Vec<Shape>| {
        let choice = move |shape| Choice { shape: Some(shape), ..Choice::of(kernel) };
        shapes.into_iter().map(choice)
    };
    let rows = |shape: LaneShape| table::LANE_ROWS.map(|rows| Shape::Lanes(LaneShape { rows, ..shape })).to_vec();
    let tiles = || {
        let fit = |tile: &TileShape| *tile == table::gpu_tile(widest) || widest > 64;
        table::TILES.into_iter().filter(fit).map(Shape::Tile).collect::<Vec<_>>()
    };
    // Many rows a lane are the most promising, as long as the driver compiles a step in seconds.
    let broadcast = device.subgroups.map_or_else(Vec::new, |(lanes, _)| {
        let keys = table::least_keys(lanes, head, value)..=lanes;
        let shapes = table::LANE_ROWS
            .into_iter()
            .rev()
            .flat_map(|rows| table::LANE_KEYS.into_iter().rev().map(move |keys| LaneShape { lanes, rows, keys }));
        let short = |s: &LaneShape| s.rows * s.keys * head.max(value) <= 256 * lanes && keys.contains(&s.keys);
        shapes.filter(short).map(Shape::Lanes).collect()
    });
    let matrix = device.matrix.zip(device.subgroups);
    let matrix = matrix.map(|(side, subgroups)| Shape::Matrix(matrices(side, subgroups)));
    // Rows in registers of one invocation are for vectors of a CPU: GPUs spill them.
    let alone = if device.kind == DeviceKind::Cpu { rows(ROWS_CPU) } else { Vec::new() };
    of(Kernel::Matrix, matrix.into_iter().collect())
        .chain(of(Kernel::TileSubgroup, tiles()))
        .chain(of(Kernel::TileUniversal, tiles()))
        .chain(of(Kernel::Broadcast, broadcast))
        .chain(of(Kernel::TileUniversal, alone))
        .filter(|c| {
            let design = |shape| Design { task, ..choose::design(c.kernel, shape, attention) };
            c.shape.is_none_or(|shape| quirks::known(design(shape), device).is_none())
        })
        .collect()
}

/// Numbers of stretches: first what the planner takes the device to be busy with, then what it may be instead.
fn stretches(decode: &Decode, device: &Capabilities) -> Vec<u32> {
    let busy = busy(decode.attention.heads.key_value(), device);
    let all = [busy, 2 * busy, busy / 2, 4 * busy, busy / 4];
    all.into_iter().filter(|&stretches| stretches > 0).collect()
}

fn linear_menu(task: Task, registers: u32, device: &Capabilities) -> Vec<Choice> {
    Kernel::ALL
        .into_iter()
        .filter(|&kernel| quirks::known(Design { task, kernel, registers, rows: 0 }, device).is_none())
        .flat_map(|kernel| {
            [Schedule::Sequential, Schedule::Segments]
                .map(|schedule| Choice { schedule: Some(schedule), ..Choice::of(kernel) })
        })
        .collect()
}

fn linear_problem(name: &str, pass: Pass, extent: Tokens, heads: u32, [qk, value]: [u32; 2]) -> String {
    let pass = match pass {
        Pass::Forward => "",
        Pass::Backward => ", backward",
        Pass::Step { .. } => ", one step",
    };
    let extent = Tokens { batch: round(extent.batch), tokens: round(extent.tokens), ..extent };
    format!("{name}{pass} {extent}: heads {heads}, head dim {qk}/{value}")
}

fn states(initial: bool, end: bool) -> &'static str {
    match (initial, end) {
        (false, false) => "",
        (true, false) => ", from states",
        (false, true) => ", to states",
        (true, true) => ", from and to states",
    }
}

/// The next power of two, of lengths that plans allow; nothing is like nothing only.
fn round(n: u32) -> u32 {
    if n == 0 { 0 } else { n.checked_next_power_of_two().unwrap_or(n) }
}
