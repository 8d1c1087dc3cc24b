//! Calls on host slices that are awaited.

use wattn_scheduler::{Attention, AttentionBackward, Based, Decode, Extent, Lightning, Tokens};
use wgpu::ErrorFilter;

use super::backward::{self, HostGradients, HostIncoming};
use super::call::{Call, Results};
use super::decode;
use super::linear::{self, HostLinear, HostLinearOutput};
use super::softmax::{self, HostOperands, HostOutput};
use crate::engine::Engine;
use crate::error::RunError;
use crate::scope::popped;

/// Calls of an engine that are awaited; see [`Engine::on_host`].
#[derive(Debug, Clone)]
pub struct OnHost {
    engine: Engine,
}

impl Engine {
    /// The calls of [`blocking`](Self::blocking) as futures, for browsers and for hosts that wait for more than one thing. On native
    /// targets each poll of a future polls the device.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Attention, Engine, Extent, HeadDim, Heads};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// let attention = Attention::new(Heads::new(1)?, HeadDim::new(2)?).causal();
    /// let (q, k, v) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [1.0, 2.0, 3.0, -1.0]);
    /// let out = async { engine.on_host().attention(&attention, Extent::new(1, 2, 2), &q, &k, &v).await };
    /// # let out = pollster::block_on(out)?;
    /// # assert!((out[2] - 2.608859).abs() < 1e-5);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn on_host(&self) -> OnHost {
        OnHost { engine: self.clone() }
    }
}

impl OnHost {
    /// As [`Blocking::attention`](super::Blocking::attention).
    ///
    /// # Errors
    /// As there, but for time-outs.
    pub async fn attention(
        &self,
        attention: &Attention,
        extent: Extent,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, RunError> {
        Ok(self.run(attention, extent, &HostOperands { q, k, v, ..HostOperands::default() }).await?.out)
    }

    /// As [`Blocking::run`](super::Blocking::run).
    ///
    /// # Errors
    /// As there, but for time-outs.
    pub async fn run(
        &self,
        attention: &Attention,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<HostOutput, RunError> {
        self.results(softmax::call, attention, extent, operands).await.map(HostOutput::of)
    }

    /// As [`Blocking::attention_backward`](super::Blocking::attention_backward).
    ///
    /// # Errors
    /// As there, but for time-outs.
    pub async fn attention_backward(
        &self,
        backward: &AttentionBackward,
        extent: Extent,
        operands: &HostOperands<'_>,
        incoming: &HostIncoming<'_>,
    ) -> Result<HostGradients, RunError> {
        self.results(backward::call, backward, extent, (operands, incoming)).await.map(HostGradients::of)
    }

    /// As [`Blocking::decode`](super::Blocking::decode).
    ///
    /// # Errors
    /// As there, but for time-outs.
    pub async fn decode(
        &self,
        decode: &Decode,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<HostOutput, RunError> {
        self.results(decode::call, decode, extent, operands).await.map(HostOutput::of)
    }

    /// As [`Blocking::lightning`](super::Blocking::lightning).
    ///
    /// # Errors
    /// As there, but for time-outs.
    pub async fn lightning(
        &self,
        lightning: &Lightning,
        extent: Tokens,
        operands: &HostLinear<'_>,
    ) -> Result<HostLinearOutput, RunError> {
        self.results(linear::lightning_call, lightning, extent, operands).await.map(HostLinearOutput::of)
    }

    /// As [`Blocking::based`](super::Blocking::based).
    ///
    /// # Errors
    /// As there, but for time-outs.
    pub async fn based(
        &self,
        based: &Based,
        extent: Tokens,
        operands: &HostLinear<'_>,
    ) -> Result<HostLinearOutput, RunError> {
        self.results(linear::based_call, based, extent, operands).await.map(HostLinearOutput::of)
    }

    async fn results<O, E, H>(
        &self,
        make: impl FnOnce(&Engine, O, E, H) -> Result<Call, RunError>,
        operator: O,
        extent: E,
        operands: H,
    ) -> Result<Results, RunError> {
        // Browsers tell late what went wrong; whatever it was, memory would come back mapped, with zeros.
        let device = self.engine.device();
        let filters = [ErrorFilter::OutOfMemory, ErrorFilter::Internal, ErrorFilter::Validation];
        let scopes = filters.map(|filter| device.push_error_scope(filter));
        let call = make(&self.engine, operator, extent, operands);
        let errors: Vec<_> = popped(scopes.into()).collect();
        let call = call?;
        call.map().mapped(device).await?;
        for error in errors {
            if let Some(error) = error.await {
                return Err(RunError::Device(error.to_string()));
            }
        }
        call.results()
    }
}
