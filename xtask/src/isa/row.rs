//! What the driver said of one kernel, as a row of the report.

use serde::Serialize;
use serde_json::{Map, Value};

use super::assembly::{Mix, hot_loop};
use super::dialects::Dialect;

/// What a driver says of a program, under any driver's names for it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Program {
    /// Lanes of a subgroup.
    pub(super) subgroup: u32,
    /// By the driver's own names, in its order.
    pub(super) statistics: Vec<(String, f64)>,
    /// Intermediate representations and assembly, by the driver's own names.
    pub(super) texts: Vec<(String, String)>,
}

/// One kernel. Numbers that a driver does not give are null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    /// The pipeline's label.
    pub(super) kernel: String,
    pub(super) op: String,
    /// Whether plans for this device take it without being told to.
    pub(super) planned: bool,
    pub(super) subgroup: u32,
    pub(super) registers: Option<f64>,
    pub(super) spills: Option<f64>,
    /// Bytes of workgroup memory.
    pub(super) shared_bytes: u32,
    /// Subgroups or invocations side by side, by the driver's own measure.
    pub(super) occupancy: Option<f64>,
    pub(super) instructions: Option<f64>,
    /// Static, with trip counts that the driver guesses.
    pub(super) cycles: Option<f64>,
    pub(super) hot_loop: Option<Mix>,
    /// All that the driver said.
    pub(super) statistics: Map<String, Value>,
}

/// Registers of a lane.
const REGISTERS: &[&str] =
    &["VGPRs", "Number of GPRs", "Max live registers", "Registers used", "GPRs", "Register Count"];
const SPILLS: &[&str] = &["Spilled VGPRs", "Spilled SGPRs", "Spills to memory", "Spills", "STP Count"];
const OCCUPANCY: &[&str] = &["Subgroups per SIMD", "Max warps/SM", "Max Waves Per Core", "Threads"];
const INSTRUCTIONS: &[&str] = &["Instructions", "Instruction count", "Instruction Count"];
const CYCLES: &[&str] = &["Latency", "Static cycle count", "Cycles", "ALU"];

/// The operator that a pipeline's label begins with.
pub(super) fn operator(label: &str) -> &str {
    label.split(['/', '+']).next().unwrap_or_default()
}

impl Row {
    pub(super) fn new(kernel: String, planned: bool, shared_bytes: u32, program: &Program) -> Self {
        let get = |names: &[&str]| {
            let named = program.statistics.iter().filter(|(name, _)| names.contains(&name.as_str()));
            named.map(|&(_, value)| value).reduce(|a, b| a + b)
        };
        let assembly = |(name, text): &(String, String)| Dialect::of(name).and_then(|of| hot_loop(of, text));
        Self {
            op: operator(&kernel).to_owned(),
            kernel,
            planned,
            subgroup: program.subgroup,
            registers: get(REGISTERS),
            spills: get(SPILLS),
            shared_bytes,
            occupancy: get(OCCUPANCY),
            instructions: get(INSTRUCTIONS),
            cycles: get(CYCLES),
            hot_loop: program.texts.iter().find_map(assembly),
            statistics: program.statistics.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(statistics: &[(&str, f64)], texts: &[(&str, &str)]) -> Row {
        let program = Program {
            subgroup: 32,
            statistics: statistics.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
            texts: texts.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect(),
        };
        Row::new("flash_forward/tile-subgroup/16x8of4x4/f32/v64".to_owned(), true, 13_312, &program)
    }

    #[test]
    fn the_same_columns_under_each_drivers_names() {
        let radv =
            [("SGPRs", 108.0), ("VGPRs", 120.0), ("Spilled SGPRs", 2.0), ("Spilled VGPRs", 1.0), ("Latency", 9.0)];
        let nvk =
            [("Number of GPRs", 120.0), ("Spills to memory", 3.0), ("Spills to reg", 7.0), ("Static cycle count", 9.0)];
        let anv = [("Max live registers", 120.0), ("Spills", 3.0), ("Fills", 5.0), ("Cycles", 9.0)];
        for statistics in [&radv[..], &nvk[..], &anv[..]] {
            let row = row(statistics, &[]);
            assert_eq!((row.registers, row.spills, row.cycles), (Some(120.0), Some(3.0), Some(9.0)));
            assert_eq!((row.op.as_str(), row.occupancy, row.hot_loop), ("flash_forward", None, None));
            assert_eq!(row.statistics.len(), statistics.len());
        }
    }

    #[test]
    fn assembly_is_told_from_other_texts() {
        let nir = ("NIR Shader(s)", "BB0:\n\tv_fma_f32 v1, v1, v1, v1\n\ts_branch BB0\n");
        assert_eq!(row(&[], &[nir]).hot_loop, None);
        assert_eq!(row(&[], &[nir, ("Assembly", nir.1)]).hot_loop, Some(Mix { fma: 1, ..Mix::default() }));
    }
}
