//! BASED linear attention as dispatches. The backward pass is two walks: one over the keys, forward, for the gradient of q; and one over
//! the queries, from the last to the first, for those of k, v and the state, in which keys look at queries.

use wattn_shaders::{
    Access, BasedKey, BasedOp, FEATURE_CLASSES, Kernel, Key, LinearKey, LinearOp, MATRIX_FEATURES, Storage,
    gradient_values,
};

use crate::based::Based;
use crate::capabilities::Capabilities;
use crate::choose;
use crate::lightning::{Pass, Schedule};
use crate::sweep::Tensor;

/// Where the states of a step lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasedStates {
    /// With the caller, one a sequence.
    Operand(Tensor),
    /// In the workspace, one a segment.
    Segments,
    /// In the workspace, one a sequence.
    Sequences,
    /// In the workspace, two a sequence that stretches take turns with: from the one, to the other.
    Turns,
}

/// One dispatch: which tensor plays which role. What its pipeline has no use for is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasedStep {
    /// The pipeline.
    pub key: Key,
    /// In the role of queries.
    pub q: Option<Tensor>,
    /// In the roles of keys and of their values.
    pub kv: Option<[Tensor; 2]>,
    /// What meets the values, of gradients.
    pub g: Option<Tensor>,
    /// What comes out.
    pub out: Option<Tensor>,
    /// The states it starts from.
    pub from: Option<BasedStates>,
    /// The states it ends in; with the caller, one a sequence, those of its last segment.
    pub to: Option<BasedStates>,
    /// Whether tokens go from the last to the first and states are gradients of states.
    pub reversed: bool,
    /// Whether it takes segments one by one, not whole sequences.
    pub segmented: bool,
    /// Of gradients: the first vec4 column of the value dim of this pass.
    pub block: u32,
    /// Which stretch of each sequence it takes, where they are walked one after the other.
    pub stretch: u32,
}

impl BasedStep {
    /// The pipeline, unless the step joins states.
    #[must_use]
    pub fn based_key(&self) -> Option<&BasedKey> {
        match &self.key {
            Key::Based(key) => Some(key),
            _ => None,
        }
    }

    /// Workgroups that share a segment of a head.
    #[must_use]
    pub fn splits(&self, based: &Based) -> u32 {
        let value = based.dims().value();
        match &self.key {
            Key::Based(key) if key.is_gradient() || key.op == BasedOp::Step => 1,
            Key::Based(key) => value.div_ceil(4 * key.columns()),
            Key::Linear(scan) => (based.state_rows() * (value + 1)).div_ceil(scan.columns()),
            _ => 0,
        }
    }
}

/// Tokens that are added one by one, and the states before the first and after the last.
struct Walk {
    kv: [Tensor; 2],
    reversed: bool,
    first: Option<BasedStates>,
    last: Option<BasedStates>,
}

/// What looks at the tokens of a walk.
struct Reader {
    q: Tensor,
    /// Of gradients of scores.
    g: Option<Tensor>,
    out: Tensor,
}

/// What all steps of a call have in common.
struct Steps<'a> {
    based: &'a Based,
    kernel: Kernel,
    schedule: Schedule,
    /// Stretches that are walked one after the other.
    stretches: u32,
    device: &'a Capabilities,
}

/// The steps of a call, in order.
pub(crate) fn steps(
    based: &Based,
    kernel: Kernel,
    schedule: Schedule,
    stretches: u32,
    device: &Capabilities,
) -> Vec<BasedStep> {
    let all = Steps { based, kernel, schedule, stretches, device };
    let given = |on: bool, tensor| on.then_some(BasedStates::Operand(tensor));
    let (initial, last) = (based.initial_state, based.final_state);
    let keys = Walk { kv: [Tensor::K, Tensor::V], reversed: false, first: given(initial, Tensor::State0), last: None };
    match based.pass {
        Pass::Step { in_place } => vec![all.step(in_place)],
        Pass::Forward => {
            let out = Reader { q: Tensor::Q, g: None, out: Tensor::Out };
            let walk = Walk { last: given(last, Tensor::State), ..keys };
            if stretches > 1 { all.stretches(&walk, &out) } else { all.walk(&walk, &[out]) }
        }
        Pass::Backward => {
            let queries = Walk {
                kv: [Tensor::Q, Tensor::GradOut],
                reversed: true,
                first: given(last, Tensor::GradState),
                last: given(initial, Tensor::Dstate),
            };
            let dq = Reader { q: Tensor::Q, g: Some(Tensor::GradOut), out: Tensor::Dq };
            let dk = Reader { q: Tensor::K, g: Some(Tensor::V), out: Tensor::Dk };
            let dv = Reader { q: Tensor::K, g: None, out: Tensor::Dv };
            [all.walk(&keys, &[dq]), all.walk(&queries, &[dk, dv])].concat()
        }
    }
}

impl Steps<'_> {
    /// The states first, where they are needed before the first output: those of segments, or of whole sequences that every query sees.
    fn walk(&self, walk: &Walk, readers: &[Reader]) -> Vec<BasedStep> {
        let (causal, segmented) = (self.based.causal, self.schedule == Schedule::Segments);
        let all = if causal { walk.last } else { walk.last.or(Some(BasedStates::Sequences)) };
        let mut steps = Vec::new();
        if segmented {
            steps.push(self.state(walk, None, BasedStates::Segments));
            steps.push(scan(walk, all.filter(|_| !causal)));
        } else if let (false, Some(to)) = (causal, all) {
            steps.push(self.state(walk, walk.first, to));
        }
        let from = match (causal, segmented) {
            (true, true) => Some(BasedStates::Segments),
            (true, false) => walk.first,
            (false, _) => all,
        };
        for (n, reader) in readers.iter().enumerate() {
            // Where tokens are added, the last reader leaves the states: one pipeline for both schedules.
            let to = walk.last.filter(|_| causal && n + 1 == readers.len());
            steps.extend(self.read(walk, reader, from, to));
        }
        steps
    }

    /// Stretch after stretch, the states handed on; at last those that the caller asks for are copied.
    fn stretches(&self, walk: &Walk, reader: &Reader) -> Vec<BasedStep> {
        let turns = Some(BasedStates::Turns);
        let step = |stretch| {
            let from = if stretch > 0 { turns } else { walk.first };
            self.read(walk, reader, from, turns).into_iter().map(move |step| BasedStep { stretch, ..step })
        };
        let copy = walk.last.map(|to| BasedStep { from: turns, ..scan(walk, Some(to)) });
        (0..self.stretches).flat_map(step).chain(copy).collect()
    }

    fn storage(&self, tensor: Tensor) -> Storage {
        if tensor.is_stored_like_q() { self.based.q } else { self.based.kv }
    }

    /// A pipeline of the plan's kernel.
    fn key(&self, op: BasedOp, walk: &Walk) -> BasedKey {
        let Self { based, kernel, device, .. } = *self;
        let features = based.dims.qk();
        let lanes = match (kernel, device.subgroups) {
            (Kernel::Broadcast, Some((min, _))) => min,
            _ => 0,
        };
        let wide = lanes > 0 && features.is_multiple_of(8) && device.loads_wide();
        let class = FEATURE_CLASSES.into_iter().find(|&class| features <= class).unwrap_or(0);
        let storage = [based.q, based.kv];
        let square = if kernel == Kernel::Matrix { choose::matrix_square(storage, device).ok() } else { None };
        BasedKey {
            op,
            kernel,
            lanes,
            square,
            q: Storage::F32,
            kv: Storage::F32,
            access: if wide { Access::Vec8 } else { based.access },
            class,
            padded: square.map_or(class, |_| MATRIX_FEATURES) > features,
            weights: false,
            state: false,
            resumed: false,
            reversed: walk.reversed,
            values: 0,
            passes: false,
        }
    }

    /// Adds all tokens. What no query looks at is the same in all pipelines.
    fn state(&self, walk: &Walk, from: Option<BasedStates>, to: BasedStates) -> BasedStep {
        let key = self.key(BasedOp::State, walk);
        // Rows follow subgroups for the sake of queries only.
        let kernel = if key.kernel == Kernel::TileSubgroup { Kernel::TileUniversal } else { key.kernel };
        let kv = self.storage(walk.kv[0]);
        BasedStep {
            key: Key::Based(BasedKey { kernel, kv, weights: true, state: true, ..key }),
            q: None,
            kv: Some(walk.kv),
            g: None,
            out: None,
            from,
            to: Some(to),
            reversed: walk.reversed,
            segmented: self.schedule == Schedule::Segments,
            block: 0,
            stretch: 0,
        }
    }

    /// The passes of one output.
    fn read(&self, walk: &Walk, reader: &Reader, from: Option<BasedStates>, to: Option<BasedStates>) -> Vec<BasedStep> {
        let (causal, value) = (self.based.causal, self.based.dims.value());
        let op = match (causal, reader.g.is_some()) {
            (true, false) => BasedOp::Chunk,
            (false, false) => BasedOp::Read,
            (true, true) => BasedOp::Gradient,
            (false, true) => BasedOp::ReadGradient,
        };
        let key = self.key(op, walk);
        let normalize = self.based.normalize && !walk.reversed;
        let key = BasedKey {
            q: self.storage(reader.q),
            kv: if causal { self.storage(walk.kv[0]) } else { Storage::F32 },
            weights: normalize || to.is_some(),
            state: to.is_some(),
            resumed: from == Some(BasedStates::Turns),
            ..key
        };
        let step = BasedStep {
            key: Key::Based(key),
            q: Some(reader.q),
            kv: causal.then_some(walk.kv),
            g: reader.g,
            out: Some(reader.out),
            from,
            to,
            reversed: walk.reversed,
            segmented: self.schedule == Schedule::Segments,
            block: 0,
            stretch: 0,
        };
        if reader.g.is_none() {
            return vec![step];
        }
        // Subgroups have a part in it on CPU drivers and with matrices only.
        let (kernel, padded, values) = match key.square {
            Some(square) => (key.kernel, key.padded, square.edge / 4),
            None if key.lanes > 0 => (key.kernel, false, gradient_values(key.class, value)),
            None => (Kernel::TileUniversal, false, gradient_values(key.class, value)),
        };
        let access = self.based.access;
        let key = BasedKey { kernel, access, padded, values, passes: value > 4 * values, ..key };
        let blocks = (0..value.div_ceil(4)).step_by(values as usize);
        blocks.map(|block| BasedStep { key: Key::Based(key), block, ..step }).collect()
    }

    fn step(&self, in_place: bool) -> BasedStep {
        let operand = |tensor| Some(BasedStates::Operand(tensor));
        let kv = [Tensor::K, Tensor::V];
        let key = self.key(BasedOp::Step, &Walk { kv, reversed: false, first: None, last: None });
        let key = BasedKey {
            kernel: Kernel::TileUniversal,
            lanes: 0,
            q: self.based.q,
            kv: self.based.kv,
            access: self.based.access,
            class: 0,
            padded: false,
            weights: true,
            state: in_place,
            ..key
        };
        BasedStep {
            key: Key::Based(key),
            q: Some(Tensor::Q),
            kv: Some(kv),
            g: None,
            out: Some(Tensor::Out),
            from: if in_place { None } else { operand(Tensor::State0) },
            to: operand(Tensor::State),
            reversed: false,
            segmented: false,
            block: 0,
            stretch: 0,
        }
    }
}

/// Joins the states of segments: the scan of linear attention that never forgets.
fn scan(walk: &Walk, to: Option<BasedStates>) -> BasedStep {
    let key = LinearKey {
        op: LinearOp::Scan,
        kernel: Kernel::TileUniversal,
        lanes: 0,
        square: None,
        q: Storage::F32,
        kv: Storage::F32,
        access: Access::Any,
        head_class: 0,
        padded: false,
        gated: false,
        state: to.is_some(),
        resumed: false,
    };
    BasedStep {
        key: Key::Linear(key),
        q: None,
        kv: None,
        g: None,
        out: None,
        from: walk.first,
        to,
        reversed: walk.reversed,
        segmented: false,
        block: 0,
        stretch: 0,
    }
}
