//! stub
use std::path::Path;
use super::row::Run;
pub(crate) fn write(_: &Path, _: &Run) -> anyhow::Result<()> { Ok(()) }
