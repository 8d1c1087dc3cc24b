//! Time against length: each operator on ever longer sequences, until one run is predicted to take too long.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use wattn::{Attention, Based, Decay, Engine, Extent, HeadDim, Heads, Lightning, Tokens};

use wattn_tests::Variant;

use crate::report::guarded;

use super::ceilings::Ceilings;
use super::clock::Clock;
use super::planned::Planned;
use super::row::failure;
use super::stats::Timer;

const HEADS: u32 = 8;
const DIM: u32 = 64;
/// Of BASED.
const FEATURES: u32 = 16;
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
    /// Why it was not timed, or no further.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// Why the pinned kernel was not tried.
    #[serde(default)]
    pub(crate) skipped: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) tokens: u32,
    pub(crate) us: f64,
    /// None of what was not measured.
    #[serde(default)]
    pub(crate) clock: Option<Timer>,
    /// By the exponent, from the longest that was measured.
    pub(crate) extrapolated: bool,
}

/// An operator that is timed: the name, the case that must have passed, and how time is expected to grow.
struct Operator {
    op: &'static str,
    gate: &'static str,
    growth: f64,
    plan: fn(&Engine, Option<Variant>, u32) -> Result<Planned>,
}

const OPERATORS: [Operator; 3] = [
    Operator { op: "softmax", gate: "softmax/causal_1024", growth: 4.0, plan: softmax },
    Operator { op: "lightning", gate: "lightning/forward_8192", growth: 2.0, plan: lightning },
    Operator { op: "based", gate: "based/forward_8192", growth: 2.0, plan: based },
];

fn softmax(engine: &Engine, pinned: Option<Variant>, tokens: u32) -> Result<Planned> {
    let attention = Attention::new(Heads::new(HEADS)?, HeadDim::new(DIM)?).causal();
    let attention = pinned.map_or(attention, |variant| variant.force(attention));
    Planned::softmax(engine, &attention, Extent::new(1, tokens, tokens))
}

fn lightning(engine: &Engine, pinned: Option<Variant>, tokens: u32) -> Result<Planned> {
    let lightning = Lightning::new(HEADS, HeadDim::new(DIM)?).decay(Decay::transnormer(3, 12));
    let lightning = pinned.map_or(lightning.clone(), |variant| variant.force_linear(lightning));
    Planned::lightning(engine, &lightning, Tokens::new(1, tokens))
}

fn based(engine: &Engine, pinned: Option<Variant>, tokens: u32) -> Result<Planned> {
    let based = Based::new(HEADS, HeadDim::with_value(FEATURES, DIM)?);
    let based = pinned.map_or(based.clone(), |variant| variant.force_based(based));
    Planned::based(engine, &based, Tokens::new(1, tokens))
}

/// Whether an operator is timed only if this case was found right.
pub(crate) fn is_gate(case: &str) -> bool {
    OPERATORS.iter().any(|operator| operator.gate == case)
}

/// Measures each operator whose gate passed, by the pinned kernel if there is one.
pub(crate) fn measure(
    engine: &Engine,
    clock: &Clock,
    ceilings: &Ceilings,
    pinned: Option<Variant>,
    passed: impl Fn(&str) -> bool,
) -> Vec<Line> {
    let measured = |operator: &Operator| {
        let mut points = Vec::new();
        let stopped = guarded(|| add_points(engine, clock, ceilings, pinned, operator, &mut points)).err();
        let exponent = exponent(&points);
        points.extend(extrapolated(&points, exponent));
        let (error, skipped) = stopped.as_ref().map(failure).unwrap_or_default();
        Line { op: operator.op.into(), gate: operator.gate.into(), exponent, points, error, skipped }
    };
    OPERATORS.iter().filter(|operator| passed(operator.gate)).map(measured).collect()
}

/// Measures an operator's points. Those before a failure are kept.
fn add_points(
    engine: &Engine,
    clock: &Clock,
    ceilings: &Ceilings,
    pinned: Option<Variant>,
    operator: &Operator,
    points: &mut Vec<Point>,
) -> Result<()> {
    for tokens in TOKENS {
        if points.last().is_some_and(|last| last.us * 1e-6 * operator.growth > LONGEST) {
            break;
        }
        // A device may lack the memory, or a limit: the line ends there.
        let planned = match (operator.plan)(engine, pinned, tokens) {
            Ok(planned) => planned,
            Err(error) if points.is_empty() => return Err(error),
            Err(_) => break,
        };
        let time = planned.timed(clock, ceilings, SAMPLES)?;
        points.push(Point { tokens, us: time.median * 1e6, clock: Some(time.clock), extrapolated: false });
    }
    Ok(())
}

/// The points beyond those that were measured, by their exponent.
fn extrapolated(points: &[Point], exponent: Option<f64>) -> Vec<Point> {
    let (Some(&last), Some(exponent)) = (points.last(), exponent) else { return Vec::new() };
    let beyond = TOKENS.into_iter().filter(|&tokens| tokens > last.tokens);
    let point = |tokens| {
        let us = last.us * (f64::from(tokens) / f64::from(last.tokens)).powf(exponent);
        Point { tokens, us, clock: None, extrapolated: true }
    };
    beyond.map(point).collect()
}

/// The slope of log time over log tokens, by least squares, of points that the longest one's clock measured.
fn exponent(points: &[Point]) -> Option<f64> {
    let clock = points.last()?.clock;
    let counts = |p: &&Point| p.tokens >= FIT_FROM && p.clock == clock;
    let logs: Vec<(f64, f64)> = points.iter().filter(counts).map(|p| (f64::from(p.tokens).ln(), p.us.ln())).collect();
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
            let us = |tokens: u32| 3.0 * f64::from(tokens).powf(power);
            let point = |tokens| Point { tokens, us: us(tokens), clock: Some(Timer::Gpu), extrapolated: false };
            TOKENS.into_iter().map(point).collect()
        };
        for power in [1.0, 2.0] {
            assert!((exponent(&points(power)).unwrap() - power).abs() < 1e-9);
        }
        assert_eq!(exponent(&points(1.0)[..2]), None, "one point that counts");
        let mut mixed = points(2.0);
        for point in &mut mixed[..3] {
            (point.us, point.clock) = (point.us + 1e6, Some(Timer::Wall));
        }
        assert!((exponent(&mixed).unwrap() - 2.0).abs() < 1e-9, "another clock's points do not count");
    }
}
