//! Time against length: each operator on ever longer sequences, until one run is predicted to take too long.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wattn::wgpu::{self, Buffer, BufferUsages, CommandEncoder, ComputePass};
use wattn::{
    Attention, Decay, Engine, Extent, HeadDim, Heads, Lightning, LinearOperands, LinearPlan, Operands, Plan, Tokens,
    View,
};

use super::clock::{Clock, Sample};
use super::stats::Series;

const HEADS: u32 = 8;
const DIM: u32 = 64;
/// From 1k to 128k tokens.
const TOKENS: [u32; 8] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 17];
/// A run that is predicted to take longer is not tried, seconds.
const LONGEST: f64 = 5.0;
const SAMPLES: usize = 3;
/// Shorter sequences have no part in the exponent: they do not fill a device.
const FIT_FROM: u32 = 2048;

/// One operator's line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) op: String,
    /// The case whose kernel was found right in the same run.
    pub(crate) gate: String,
    /// Of time over length, fitted; `None` where too little was measured.
    pub(crate) exponent: Option<f64>,
    pub(crate) points: Vec<Point>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) tokens: u32,
    pub(crate) us: f64,
    /// By the exponent, from the longest that was measured.
    pub(crate) extrapolated: bool,
}

/// An operator that is timed: the name, the case that must have passed, and how time is expected to grow.
struct Operator {
    op: &'static str,
    gate: &'static str,
    growth: f64,
    plan: fn(&Engine, u32) -> Result<Planned>,
}

enum Planned {
    Softmax(Plan),
    Linear(LinearPlan),
}

const OPERATORS: [Operator; 2] = [
    Operator { op: "softmax", gate: "softmax/causal_1024", growth: 4.0, plan: softmax },
    Operator { op: "lightning", gate: "lightning/forward_8192", growth: 2.0, plan: lightning },
];

fn softmax(engine: &Engine, tokens: u32) -> Result<Planned> {
    let attention = Attention::new(Heads::new(HEADS)?, HeadDim::new(DIM)?).causal();
    Ok(Planned::Softmax(engine.plan(&attention, Extent::new(1, tokens, tokens))?))
}

fn lightning(engine: &Engine, tokens: u32) -> Result<Planned> {
    let lightning = Lightning::new(HEADS, HeadDim::new(DIM)?).decay(Decay::transnormer(3, 12));
    Ok(Planned::Linear(engine.plan(&lightning, Tokens::new(1, tokens))?))
}

/// Measures each operator whose gate passed.
pub(crate) fn measure(engine: &Engine, clock: &Clock, passed: impl Fn(&str) -> bool) -> Result<Vec<Line>> {
    OPERATORS.iter().filter(|operator| passed(operator.gate)).map(|operator| line(engine, clock, operator)).collect()
}

fn line(engine: &Engine, clock: &Clock, operator: &Operator) -> Result<Line> {
    let mut points: Vec<Point> = Vec::new();
    for tokens in TOKENS {
        if points.last().is_some_and(|last| last.us * 1e-6 * operator.growth > LONGEST) {
            break;
        }
        // A device may lack the memory, or a limit: the line ends there.
        let Ok(planned) = (operator.plan)(engine, tokens) else { break };
        let us = median(engine, clock, &planned, tokens)? * 1e6;
        points.push(Point { tokens, us, extrapolated: false });
    }
    let exponent = exponent(&points);
    if let (Some(&last), Some(exponent)) = (points.last(), exponent) {
        let beyond = TOKENS.into_iter().filter(|&tokens| tokens > last.tokens);
        points.extend(beyond.map(|tokens| {
            let us = last.us * (f64::from(tokens) / f64::from(last.tokens)).powf(exponent);
            Point { tokens, us, extrapolated: true }
        }));
    }
    Ok(Line { op: operator.op.into(), gate: operator.gate.into(), exponent, points })
}

/// The median of a few samples, seconds, after a first run.
fn median(engine: &Engine, clock: &Clock, planned: &Planned, tokens: u32) -> Result<f64> {
    let buffer = || {
        // wgpu fills buffers with zeros; what they hold does not change the time.
        engine.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("lengths"),
            size: u64::from(HEADS) * u64::from(tokens) * u64::from(DIM) * 4,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let operands = [(); 4].map(|()| buffer());
    let workspace = match planned {
        Planned::Linear(plan) if plan.workspace_bytes() > 0 => {
            let size = plan.workspace_bytes();
            let (label, usage) = (Some("workspace"), BufferUsages::STORAGE);
            Some(engine.device().create_buffer(&wgpu::BufferDescriptor {
                label,
                size,
                usage,
                mapped_at_creation: false,
            }))
        }
        _ => None,
    };
    planned.sample(clock, &operands, workspace.as_ref())?;
    let samples = (0..SAMPLES).map(|_| planned.sample(clock, &operands, workspace.as_ref())).collect::<Result<_>>()?;
    Ok(Series(samples).summary().context("no samples")?.median)
}

impl Planned {
    fn sample(&self, clock: &Clock, [q, k, v, out]: &[Buffer; 4], workspace: Option<&Buffer>) -> Result<Sample> {
        let [q, k, v, out] = [q, k, v, out].map(View::bhsd);
        match self {
            Self::Softmax(plan) => {
                let operands = Operands::new(q, k, v, out);
                timed(
                    clock,
                    plan.slices(),
                    |pass| Ok(plan.encode_in_pass(pass, &operands)?),
                    |encoder, slice| Ok(plan.encode_slice(encoder, &operands, slice)?),
                )
            }
            Self::Linear(plan) => {
                let operands = LinearOperands { out: Some(out), workspace, ..LinearOperands::new(q, k, v) };
                timed(
                    clock,
                    plan.slices(),
                    |pass| Ok(plan.encode_in_pass(pass, &operands)?),
                    |encoder, slice| Ok(plan.encode_slice(encoder, &operands, slice)?),
                )
            }
        }
    }
}

/// A short call in one pass, a long one slice by slice.
fn timed(
    clock: &Clock,
    slices: u32,
    whole: impl FnOnce(&mut ComputePass<'_>) -> Result<()>,
    slice: impl Fn(&mut CommandEncoder, u32) -> Result<()>,
) -> Result<Sample> {
    if slices == 1 {
        return clock.pass(whole);
    }
    let encoders = (0..slices).map(|n| {
        let mut encoder = clock.encoder();
        slice(&mut encoder, n)?;
        Ok(encoder)
    });
    clock.submissions(encoders.collect::<Result<_>>()?)
}

/// The slope of log time over log tokens, by least squares.
fn exponent(points: &[Point]) -> Option<f64> {
    let logs: Vec<(f64, f64)> =
        points.iter().filter(|p| p.tokens >= FIT_FROM).map(|p| (f64::from(p.tokens).ln(), p.us.ln())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    let n = logs.len() as f64;
    let (x, y) = (logs.iter().map(|p| p.0).sum::<f64>() / n, logs.iter().map(|p| p.1).sum::<f64>() / n);
    let covariance: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let variance: f64 = logs.iter().map(|p| (p.0 - x).powi(2)).sum();
    (logs.len() > 1).then(|| covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_slopes() {
        let points = |power: f64| -> Vec<Point> {
            let point = |tokens: u32| Point { tokens, us: 3.0 * f64::from(tokens).powf(power), extrapolated: false };
            TOKENS.into_iter().map(point).collect()
        };
        for power in [1.0, 2.0] {
            assert!((exponent(&points(power)).unwrap() - power).abs() < 1e-9);
        }
        assert_eq!(exponent(&points(1.0)[..2]), None, "one point that counts");
    }
}
