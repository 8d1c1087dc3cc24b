//! The dispatches of the gradient of the decay: stretches of tokens, cut until they are chunks.

use std::rc::Rc;

use wattn_scheduler::shaders::{Segment, Walk};
use wattn_scheduler::{Part, PlannedDecay};

use crate::linear_operands::CheckedLinear;
use crate::linear_plan::{Call, Job, LinearPlan, NONE, count};

/// The dispatches of one part, in order.
pub(crate) fn jobs<'a>(
    plan: &'a LinearPlan,
    decay: &'a PlannedDecay,
    part: &'a Part,
    checked: &'a CheckedLinear<'a>,
) -> Vec<Job<'a>> {
    let extent = plan.plan.extent;
    let mut kept = Vec::new();
    let mut states = 0;
    for each in decay.kept(extent, part) {
        kept.push([states, states + each]);
        states += 2 * each;
    }
    let given = |sweep: usize, index| if decay.sweeps[sweep].sweep.state0.is_some() { index } else { NONE };
    let whole: Vec<Stretch> = (0..)
        .zip(&checked.sequences)
        .filter(|(index, _)| extent.packed || part.batch.contains(index))
        .map(|(index, &(start, tokens))| {
            let batch = if extent.packed { 0 } else { index };
            Stretch { batch, start, tokens, state: given(0, index), gradient: given(1, index) }
        })
        .collect();
    let mut cutter =
        Cutter { plan, decay, part, checked, kept, states, summed: part.batch.start > 0, jobs: Vec::new() };
    cutter.cut(&whole, extent.tokens, 0);
    cutter.jobs
}

/// Tokens of a sequence.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    batch: u32,
    start: u32,
    tokens: u32,
    /// Which state is the one before it: of a whole sequence, of the caller's; else of those kept.
    state: u32,
    /// Which is the gradient of the state after it, likewise.
    gradient: u32,
}

struct Cutter<'a> {
    plan: &'a LinearPlan,
    decay: &'a PlannedDecay,
    part: &'a Part,
    checked: &'a CheckedLinear<'a>,
    /// Where the states and the gradients of each kind of stretch are kept.
    kept: Vec<[u32; 2]>,
    states: u32,
    /// Whether these heads' slopes have a gradient that the next sum adds to.
    summed: bool,
    jobs: Vec<Job<'a>>,
}

impl<'a> Cutter<'a> {
    /// Cuts stretches of at most `longest` tokens: the states before their parts and the gradients after them, then chunk by chunk the
    /// gradient of the decay, or part by part the same again. Dispatches follow from `longest`, not from what there is.
    fn cut(&mut self, stretches: &[Stretch], longest: u32, level: usize) {
        let length = self.decay.stretches[level];
        let [state, gradient] = self.kept[level];
        let cuts: Vec<Vec<Stretch>> = stretches
            .iter()
            .scan(0, |done, stretch| {
                let first = *done;
                let parts = stretch.tokens.div_ceil(length);
                *done += parts;
                // Gradients go from the last part to the first.
                let part = |n| Stretch {
                    start: stretch.start + n * length,
                    tokens: length.min(stretch.tokens - n * length),
                    state: state + first + n,
                    gradient: gradient + first + parts - 1 - n,
                    ..*stretch
                };
                Some((0..parts).map(part).collect())
            })
            .collect();
        self.sweep(0, level, stretches, &cuts);
        self.sweep(1, level, stretches, &cuts);
        if level + 1 == self.decay.stretches.len() {
            self.chunks(&cuts);
            return;
        }
        for (n, done) in (0..longest).step_by(length as usize).enumerate() {
            let round: Vec<Stretch> = cuts.iter().filter_map(|parts| parts.get(n)).copied().collect();
            self.cut(&round, length.min(longest - done), level + 1);
        }
    }

    /// The states before all parts (sweep 0), or the gradients after them (sweep 1).
    fn sweep(&mut self, sweep: usize, level: usize, stretches: &[Stretch], cuts: &[Vec<Stretch>]) {
        let planned = &self.decay.sweeps[sweep];
        let Some([walk, scan]) = planned.states else { return };
        let kept = |stretch: &Stretch| if sweep == 0 { stretch.state } else { stretch.gradient };
        let mut call = self.call(sweep);
        call.first_state = self.kept[level][sweep];
        for (whole, parts) in stretches.iter().zip(cuts) {
            if parts.is_empty() {
                continue;
            }
            let first = call.first_state + count(call.segments.len());
            let segment = |part: &Stretch| {
                let &Stretch { batch, start, tokens, .. } = part;
                let origin = if sweep == 0 { start } else { start + tokens - 1 };
                Segment { batch, origin, tokens, keys: tokens, state0: NONE, state: kept(part) }
            };
            if sweep == 0 {
                call.segments.extend(parts.iter().map(segment));
            } else {
                call.segments.extend(parts.iter().rev().map(segment));
            }
            call.walks.push(Walk { first, segments: count(parts.len()), state0: kept(whole), state: NONE });
        }
        let call = Rc::new(call);
        let scan = if level == 0 { scan } else { self.decay.scan_within };
        self.jobs.extend([(Rc::clone(&call), walk), (call, scan)]);
    }

    /// The gradient of the decay from what is kept of all chunks.
    fn chunks(&mut self, cuts: &[Vec<Stretch>]) {
        let mut call = self.call(0);
        let segment = |&Stretch { batch, start, tokens, state, gradient }: &Stretch| Segment {
            batch,
            origin: start,
            tokens,
            keys: tokens,
            state0: state,
            state: gradient,
        };
        call.segments = cuts.iter().flatten().map(segment).collect();
        let first = self.kept.last().map_or(0, |kept| kept[0]);
        let state0 = if self.summed { 0 } else { NONE };
        call.walks = vec![Walk { first, segments: count(call.segments.len()), state0, state: NONE }];
        let call = Rc::new(call);
        self.jobs.push((Rc::clone(&call), self.decay.chunk));
        if let Some(sum) = self.decay.sum {
            self.summed = true;
            self.jobs.push((call, sum));
        }
    }

    fn call(&self, sweep: usize) -> Call<'a> {
        let mut call = Call::empty(self.plan, &self.decay.sweeps[sweep], self.part, self.checked);
        call.states = self.states;
        call
    }
}

#[cfg(test)]
mod tests {
    use wattn_scheduler::{Decay, HeadDim, Lightning, Schedule, Tokens};
    use wgpu::{BufferDescriptor, BufferUsages, Device, DeviceDescriptor};

    use super::*;
    use crate::{Engine, LinearOperands, View};

    /// Slices are counted by the plan, and taken from the list of dispatches.
    #[test]
    fn there_are_as_many_dispatches_as_planned() {
        let (device, queue) = Device::noop(&DeviceDescriptor::default());
        let builder = || Engine::builder(&device, &queue);
        let engines = [builder().build(), builder().loop_turns(0).build()];
        let (size, usage) = (9000 * 4 * 4, BufferUsages::STORAGE);
        let buffer = || device.create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        let buffers: Vec<_> = (0..9).map(|_| buffer()).collect();
        let view = |n: usize| View::bhsd(&buffers[n]);
        let lightning = Lightning::new(1, HeadDim::new(4).unwrap()).decay(Decay::slopes(&[0.5])).backward();
        let packed: [u32; 4] = [0, 10, 10, 9000];
        for (extent, bounds) in [
            (Tokens::new(3, 0), &[][..]),
            (Tokens::new(2, 64), &[]),
            (Tokens::new(1, 4097), &[]),
            (Tokens::new(1, 9000), &[]),
            (Tokens::packed(3, 9000), &packed),
        ] {
            let operands = LinearOperands {
                grad_out: Some(view(3)),
                dq: Some(view(4)),
                dk: Some(view(5)),
                dv: Some(view(6)),
                dslopes: Some(view(7)),
                workspace: Some(&buffers[8]),
                bounds,
                ..LinearOperands::new(view(0), view(1), view(2))
            };
            let gradient = lightning.clone().decay_gradient();
            let sequential = gradient.clone().schedule(Schedule::Sequential);
            for (engine, lightning) in engines.iter().zip([gradient, sequential]) {
                let plan = engine.plan(&lightning, extent).unwrap();
                let checked = CheckedLinear::new(&plan.plan, &operands).unwrap();
                assert_eq!(plan.jobs(&checked).len() as u64, plan.plan.dispatches(), "{plan}");
            }
        }
    }
}
