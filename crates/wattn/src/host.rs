//! Calls on host slices, for the edges: tests, tools, first steps. Each uploads, runs, and reads back.

mod awaited;
mod backward;
mod call;
mod decode;
mod linear;
mod mapping;
mod memory;
mod softmax;

use std::time::Duration;

use wgpu::{Buffer, PollType};

use crate::engine::Engine;
use crate::error::RunError;
use crate::view::View;

#[cfg(feature = "tune")]
pub(crate) use backward::LoadedBackward;
pub(crate) use call::{Call, Results};
#[cfg(feature = "tune")]
pub(crate) use call::{Loaded, Written};
#[cfg(feature = "tune")]
pub(crate) use decode::LoadedDecode;
#[cfg(feature = "tune")]
pub(crate) use linear::{LoadedBased, LoadedLinear};
#[cfg(feature = "tune")]
pub(crate) use memory::{buffer, upload};
#[cfg(feature = "tune")]
pub(crate) use softmax::LoadedSoftmax;

use mapping::Mapping;

pub use awaited::OnHost;
pub use backward::{HostGradients, HostIncoming};
pub use linear::{HostLinear, HostLinearOutput};
pub use memory::mask_words;
pub use softmax::{HostOperands, HostOutput, HostScores};

/// The order of the axes of q, k, v and the output on the host, and of their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostLayout {
    /// [batch, heads, sequence, dim]; packed: [heads, total, dim].
    #[default]
    Bhsd,
    /// [batch, sequence, heads, dim]; packed: [total, heads, dim].
    Bshd,
}

impl HostLayout {
    fn view(self, buffer: &Buffer) -> View<'_> {
        match self {
            Self::Bhsd => View::bhsd(buffer),
            Self::Bshd => View::bshd(buffer),
        }
    }
}

/// Blocking calls of an engine; see [`Engine::blocking`].
#[derive(Debug, Clone)]
pub struct Blocking {
    engine: Engine,
    timeout: Duration,
}

impl Engine {
    /// Blocking calls on host slices. In browsers, where nothing may wait, they are errors; see
    /// [`on_host`](Self::on_host).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Attention, Engine, Extent, HeadDim, Heads};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// let attention = Attention::new(Heads::new(1)?, HeadDim::new(2)?).causal();
    /// let (q, k) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0]);
    /// let out = engine.blocking().attention(&attention, Extent::new(1, 2, 2), &q, &k, &[1.0, 2.0, 3.0, -1.0])?;
    /// assert!((out[2] - 2.608859).abs() < 1e-5);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn blocking(&self) -> Blocking {
        Blocking { engine: self.clone(), timeout: Duration::from_secs(120) }
    }
}

impl Blocking {
    /// How long one submission may take before the call fails; two minutes unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Waits for a call's results.
    pub(crate) fn results(&self, mut call: Call) -> Result<Results, RunError> {
        for submission in std::mem::take(&mut call.submissions) {
            self.wait(Some(submission))?;
        }
        self.mapped(&call.map())?;
        call.results()
    }

    /// Waits for what is being mapped.
    fn mapped(&self, mapping: &Mapping) -> Result<(), RunError> {
        self.wait(None)?;
        mapping.wait(self.timeout)
    }

    /// The bytes of a buffer on the device, once all that was submitted is done.
    #[cfg(feature = "states")]
    pub(crate) fn download(&self, buffer: &Buffer) -> Result<Vec<u8>, RunError> {
        self.bytes(&memory::readable(&self.engine, "state", buffer)?)
    }

    /// The bytes of a buffer that the host can read, once all that was submitted is done.
    #[cfg(any(feature = "states", feature = "tune"))]
    pub(crate) fn bytes(&self, readable: &Buffer) -> Result<Vec<u8>, RunError> {
        let mapping = Mapping::default();
        mapping.map(readable);
        self.mapped(&mapping)?;
        mapped_bytes(readable)
    }

    pub(crate) fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), RunError> {
        if cfg!(target_arch = "wasm32") {
            return Err(RunError::Device("in browsers nothing may wait for the device: call what is async".to_owned()));
        }
        let wait = PollType::Wait { submission_index, timeout: Some(self.timeout) };
        self.engine.device().poll(wait).map(drop).map_err(|error| RunError::Device(error.to_string()))
    }
}

/// As [`Blocking::download`], without blocking.
#[cfg(feature = "states")]
pub(crate) async fn download(engine: &Engine, argument: &'static str, buffer: &Buffer) -> Result<Vec<u8>, RunError> {
    let readable = memory::readable(engine, argument, buffer)?;
    let mapping = Mapping::default();
    mapping.map(&readable);
    mapping.mapped(engine.device()).await?;
    mapped_bytes(&readable)
}

/// The bytes of a buffer that is mapped, which it is no longer.
#[cfg(any(feature = "states", feature = "tune"))]
fn mapped_bytes(readable: &Buffer) -> Result<Vec<u8>, RunError> {
    let range = readable.slice(..).get_mapped_range().map_err(|error| RunError::Device(error.to_string()))?;
    let bytes = range.to_vec();
    drop(range);
    readable.unmap();
    Ok(bytes)
}
