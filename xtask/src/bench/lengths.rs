//! Time against length: each operator on ever longer sequences, until one run is predicted to take too long.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use wattn::{Attention, Based, Decay, Engine, Extent, HeadDim, Heads, Lightning, Tokens};

use super::clock::Clock;
use super::planned::Planned;

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

const OPERATORS: [Operator; 3] = [
    Operator { op: "softmax", gate: "softmax/causal_1024", growth: 4.0, plan: softmax },
    Operator { op: "lightning", gate: "lightning/forward_8192", growth: 2.0, plan: lightning },
    Operator { op: "based", gate: "based/forward_8192", growth: 2.0, plan: based },
];

fn softmax(engine: &Engine, tokens: u32) -> Result<Planned> {
    let attention = Attention::new(Heads::new(HEADS)?, HeadDim::new(DIM)?).causal();
    Planned::softmax(engine, &attention, Extent::new(1, tokens, tokens))
}

fn lightning(engine: &Engine, tokens: u32) -> Result<Planned> {
    let lightning = Lightning::new(HEADS, HeadDim::new(DIM)?).decay(Decay::transnormer(3, 12));
    Planned::lightning(engine, &lightning, Tokens::new(1, tokens))
}

fn based(engine: &Engine, tokens: u32) -> Result<Planned> {
    Planned::based(engine, &Based::new(HEADS, HeadDim::with_value(FEATURES, DIM)?), Tokens::new(1, tokens))
}

/// Whether an operator is timed only if this case was found right.
pub(crate) fn is_gate(case: &str) -> bool {
    OPERATORS.iter().any(|operator| operator.gate == case)
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
        let us = planned.median(clock, SAMPLES, 1)? * 1e6;
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
