//! States of linear operators as values: sized, made, copied, saved and restored.

use std::marker::PhantomData;

use wattn_scheduler::{Based, Lightning};
use wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ErrorFilter};

use crate::engine::Engine;
use crate::error::RunError;
use crate::scope::Scope;
use crate::view::View;

/// An operator with states: [`Lightning`] and [`Based`].
pub trait Recurrent: shape::Shape {}

impl Recurrent for Lightning {}
impl Recurrent for Based {}

/// What states of an operator look like, for this crate's operators only.
mod shape {
    use wattn_scheduler::{Based, Lightning};

    pub trait Shape {
        /// What states are called in files.
        const NAME: &'static str;

        /// Sequences, heads, rows, columns.
        fn shape(&self, sequences: u32) -> [u32; 4];
    }

    impl Shape for Lightning {
        const NAME: &'static str = "lightning";

        fn shape(&self, sequences: u32) -> [u32; 4] {
            [sequences, self.heads(), self.dims().qk(), self.dims().value()]
        }
    }

    impl Shape for Based {
        const NAME: &'static str = "based";

        fn shape(&self, sequences: u32) -> [u32; 4] {
            [sequences, self.heads(), self.state_rows(), self.dims().value() + 1]
        }
    }
}

/// The states of [`Lightning`] for a number of sequences: what has been seen of each, [sequences, heads, key dim, value dim] in f32,
/// and how many tokens that were.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use wattn::{Decay, Engine, HeadDim, Lightning, LightningState};
/// # if Engine::headless().is_err() { return Ok(()) }
/// let engine = Engine::headless()?;
/// let lightning = Lightning::new(8, HeadDim::new(64)?).decay(Decay::transnormer(3, 12));
/// let mut state = LightningState::new(&engine, &lightning, 1)?;
/// // ... plan.encode(.., LinearOperands { state: Some(state.view()), ..}) ...
/// state.set_tokens(state.tokens() + 1);
/// let saved = state.save()?;
/// assert_eq!(LightningState::restore(&engine, &saved)?.tokens(), 1);
/// # Ok(()) }
/// ```
pub type LightningState = State<Lightning>;

/// The states of [`Based`] for a number of sequences: the moments of the keys of each,
/// [sequences, heads, [state rows](Based::state_rows), value dim + 1] in f32, and how many tokens that were.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use wattn::{Based, BasedState, Engine, HeadDim};
/// # if Engine::headless().is_err() { return Ok(()) }
/// let engine = Engine::headless()?;
/// let state = BasedState::new(&engine, &Based::new(16, HeadDim::with_value(16, 64)?), 1)?;
/// assert_eq!(state.shape(), [1, 16, 153, 65]);
/// # Ok(()) }
/// ```
pub type BasedState = State<Based>;

/// States of an operator as a value: [`LightningState`], [`BasedState`].
#[derive(Debug)]
pub struct State<O> {
    engine: Engine,
    buffer: Buffer,
    shape: [u32; 4],
    tokens: u64,
    operator: PhantomData<fn() -> O>,
}

impl<O: Recurrent> State<O> {
    /// States of zero for `sequences` sequences of this operator.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn new(engine: &Engine, operator: &O, sequences: u32) -> Result<Self, RunError> {
        Self::of_shape(engine, operator.shape(sequences))
    }

    /// States of zero, of the same extents on the same device.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn like(&self) -> Result<Self, RunError> {
        Self::of_shape(&self.engine, self.shape)
    }

    fn of_shape(engine: &Engine, shape: [u32; 4]) -> Result<Self, RunError> {
        let device = engine.device();
        let scope = Scope::open(device, &[ErrorFilter::OutOfMemory, ErrorFilter::Validation]);
        let bytes = shape.iter().fold(4_u64, |bytes, &n| bytes.saturating_mul(u64::from(n)));
        // wgpu fills new buffers with zeros, and has no empty ones.
        let buffer = device.create_buffer(&BufferDescriptor {
            label: Some("wattn state"),
            size: bytes.max(4),
            usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        match scope.close() {
            Some(error) => Err(RunError::OutOfMemory { argument: "state", bytes, message: error.to_string() }),
            None => Ok(Self { engine: engine.clone(), buffer, shape, tokens: 0, operator: PhantomData }),
        }
    }

    /// The extents: sequences, heads, rows, columns.
    #[must_use]
    pub fn shape(&self) -> [u32; 4] {
        self.shape
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buffer.size()
    }

    /// The buffer.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The states as an operand.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View::bhsd(&self.buffer)
    }

    /// Tokens that went into each state, as far as [`set_tokens`](Self::set_tokens) was told.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Says how many tokens the states now hold; recorded calls do not count them.
    pub fn set_tokens(&mut self, tokens: u64) {
        self.tokens = tokens;
    }

    /// Records that the states start over.
    pub fn reset(&mut self, encoder: &mut CommandEncoder) {
        encoder.clear_buffer(&self.buffer, 0, None);
        self.tokens = 0;
    }

    /// Records a copy: a generation that forks.
    ///
    /// # Errors
    /// A device without the memory.
    pub fn fork(&self, encoder: &mut CommandEncoder) -> Result<Self, RunError> {
        let mut copy = self.like()?;
        copy.tokens = self.tokens;
        encoder.copy_buffer_to_buffer(&self.buffer, 0, &copy.buffer, 0, self.buffer.size());
        Ok(copy)
    }
}

#[cfg(feature = "states")]
mod file {
    use std::collections::HashMap;

    use safetensors::tensor::{Dtype, SafeTensors, TensorView};

    use super::{Recurrent, State};
    use crate::engine::Engine;
    use crate::error::RunError;
    use crate::host::download;

    impl<O: Recurrent> State<O> {
        /// The states as a safetensors file, bit by bit, with the number of tokens: all that was submitted is waited for.
        ///
        /// # Errors
        /// A device that fails or does not finish within two minutes. In browsers, where nothing may wait: see
        /// [`save_async`](Self::save_async).
        pub fn save(&self) -> Result<Vec<u8>, RunError> {
            self.file(&self.engine.blocking().download(&self.buffer)?)
        }

        /// As [`save`](Self::save), without blocking: for browsers too.
        ///
        /// # Errors
        /// A device that fails.
        pub async fn save_async(&self) -> Result<Vec<u8>, RunError> {
            self.file(&download(&self.engine, "state", &self.buffer).await?)
        }

        fn file(&self, bytes: &[u8]) -> Result<Vec<u8>, RunError> {
            let shape = self.shape.map(|n| n as usize).to_vec();
            let size = shape.iter().product::<usize>() * 4;
            let file = |error: safetensors::SafeTensorError| RunError::File(error.to_string());
            let view = TensorView::new(Dtype::F32, shape, &bytes[..size]).map_err(file)?;
            let metadata = HashMap::from([("tokens".to_owned(), self.tokens.to_string())]);
            safetensors::serialize([(O::NAME, view)], Some(metadata)).map_err(file)
        }

        /// States from a file of [`save`](Self::save) of the same operator, on any device.
        ///
        /// # Errors
        /// A file that is none of these, or a device without the memory.
        pub fn restore(engine: &Engine, bytes: &[u8]) -> Result<Self, RunError> {
            let file = |error: safetensors::SafeTensorError| RunError::File(error.to_string());
            let wrong = |what: &str| RunError::File(what.to_owned());
            let (_, header) = SafeTensors::read_metadata(bytes).map_err(file)?;
            let tokens = header.metadata().as_ref().and_then(|m| m.get("tokens")).and_then(|n| n.parse().ok());
            let tokens = tokens.ok_or_else(|| wrong("there is no number of tokens"))?;
            let tensors = SafeTensors::deserialize(bytes).map_err(file)?;
            let tensor = tensors.tensor(O::NAME).map_err(file)?;
            let extents: Vec<u32> = tensor.shape().iter().filter_map(|&n| u32::try_from(n).ok()).collect();
            let shape: [u32; 4] = extents.try_into().map_err(|_| wrong("a state has four axes"))?;
            if tensor.dtype() != Dtype::F32 {
                return Err(wrong("a state is f32"));
            }
            let mut state = Self::of_shape(engine, shape)?;
            state.tokens = tokens;
            engine.queue().write_buffer(&state.buffer, 0, tensor.data());
            Ok(state)
        }
    }
}
