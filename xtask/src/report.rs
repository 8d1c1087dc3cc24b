//! What `verify` and `replay` report: a row an output, and the JSON that holds them.

use std::any::Any;
use std::fs::{self, OpenOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde_json::{Map, Value, json};
use wattn_cases::Comparison;
use wattn_tests::Ran;

use crate::select::Device;

/// The verdict on one output of one case. Numbers that are not finite become null.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) output: Option<String>,
    pub(crate) kernel: Option<&'static str>,
    /// How the kernel is laid out, which its name leaves open.
    pub(crate) shape: Option<String>,
    pub(crate) max_abs: Option<f64>,
    pub(crate) rms_ratio: Option<f64>,
    pub(crate) tolerance: Option<f64>,
    pub(crate) elements: usize,
    pub(crate) pass: bool,
    pub(crate) error: Option<String>,
}

impl Row {
    /// A row an output.
    pub(crate) fn compared(case: &str, ran: Ran) -> Vec<Self> {
        let Ran { kernel, shape, comparisons } = ran;
        comparisons.into_iter().map(|comparison| Self::judged(case, kernel, &shape, comparison)).collect()
    }

    fn judged(case: &str, kernel: &'static str, shape: &str, comparison: Comparison) -> Self {
        Self {
            case: case.to_owned(),
            output: Some(comparison.output),
            kernel: Some(kernel),
            shape: Some(shape.to_owned()),
            max_abs: Some(comparison.max_abs),
            rms_ratio: Some(comparison.rms_ratio),
            tolerance: Some(comparison.tolerance),
            elements: comparison.elements,
            pass: comparison.pass,
            error: comparison.error,
        }
    }

    /// An output that could not be calculated; without a name, where it is not even known which.
    pub(crate) fn failed(case: &str, output: Option<&str>, error: impl Into<String>) -> Self {
        Self { case: case.to_owned(), output: output.map(str::to_owned), error: Some(error.into()), ..Self::default() }
    }
}

/// Turns a panic into an error, so that one case that wgpu or a driver chokes on does not end the run.
pub(crate) fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let message = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().map_or_else(|| "a panic".to_owned(), |&text| text.to_owned()),
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message(panic))))
}

/// What identifies a device in reports.
pub(crate) fn device_json(device: &Device) -> Value {
    let (info, capabilities) = (&device.info, device.engine.capabilities());
    json!({
        "label": device.label,
        "name": info.name,
        "backend": format!("{:?}", info.backend).to_lowercase(),
        "kind": format!("{:?}", capabilities.kind).to_lowercase(),
        "driver": info.driver,
        "driver_info": info.driver_info,
        "vendor": info.vendor,
        "device": info.device,
        "subgroup_min": capabilities.subgroups.map(|s| s.0),
        "subgroup_max": capabilities.subgroups.map(|s| s.1),
        "workgroup_bytes": capabilities.workgroup_bytes,
        "workgroup_invocations": capabilities.workgroup_invocations,
        "binding_bytes": capabilities.binding_bytes,
    })
}

/// Writes `{"schema": 1, "trusted": ..., "device": ..., "rows": ...}` and `more`.
pub(crate) fn write_json(
    path: &Path,
    device: &Device,
    rows: &impl Serialize,
    more: impl IntoIterator<Item = (&'static str, Value)>,
) -> Result<()> {
    let mut report = Map::from_iter([
        ("schema".to_owned(), json!(1)),
        ("trusted".to_owned(), json!(device.trusted)),
        ("device".to_owned(), device_json(device)),
        ("rows".to_owned(), serde_json::to_value(rows)?),
    ]);
    report.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let text = serde_json::to_string_pretty(&report)? + "\n";
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Fails unless a file can be written, before the work whose results it is for. What it holds stays.
pub(crate) fn writable(path: &Path) -> Result<()> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map(drop).with_context(|| format!("writing {}", path.display()))
}

/// The workspace's folder for what is built.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => path.into(),
        None => root().join("target"),
    }
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_writable_and_kept() {
        let folder = std::env::temp_dir().join(format!("wattn-writable-{}", std::process::id()));
        let path = folder.join("results.json");
        writable(&path).expect_err("no such folder");
        fs::create_dir(&folder).unwrap();
        fs::write(&path, "earlier").unwrap();
        writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "earlier");
        fs::remove_dir_all(&folder).unwrap();
    }
}
