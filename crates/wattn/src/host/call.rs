//! A call of which all is submitted, and its results on the way back.

use std::collections::BTreeMap;

use wattn_scheduler::shaders::Storage;
use wgpu::{Buffer, BufferUsages, CommandEncoder, CommandEncoderDescriptor, ErrorFilter, SubmissionIndex};

use super::mapping::Mapping;
use super::memory::{buffer, readable, unpacked};
use crate::engine::Engine;
use crate::error::{EncodeError, RunError};
use crate::scope::Scope;
use crate::view::View;

/// Operands of calls on the device, apart from the plan `P` that reads and writes them.
#[cfg_attr(not(feature = "tune"), expect(unreachable_pub, reason = "what can be tuned is known by it"))]
pub trait Loaded<P> {
    /// Records a slice of a plan; see [`Plan::encode_slice`](crate::Plan::encode_slice).
    fn encode_slice(&self, plan: &P, encoder: &mut CommandEncoder, slice: u32) -> Result<(), EncodeError>;

    /// What plans write.
    fn written(&self) -> Vec<&Written>;

    /// What plans keep in between.
    #[cfg(feature = "tune")]
    fn scratch(&self) -> Option<&Buffer> {
        None
    }

    /// Fills all that plans write with NaN, whatever the storage, so that what nobody writes shows.
    #[cfg(feature = "tune")]
    fn poison(&self, engine: &Engine) {
        for buffer in self.written().into_iter().map(|written| &written.buffer).chain(self.scratch()) {
            let bytes = usize::try_from(buffer.size()).unwrap_or(usize::MAX);
            engine.queue().write_buffer(buffer, 0, &vec![0xff; bytes]);
        }
    }
}

/// A call in flight.
pub(crate) struct Call {
    engine: Engine,
    /// Not waited for yet.
    pub(super) submissions: Vec<SubmissionIndex>,
    /// Copied to where the host can read them.
    results: Vec<Written>,
}

/// A result in a buffer.
#[derive(Debug)]
#[cfg_attr(not(feature = "tune"), expect(unreachable_pub, reason = "what can be tuned is known by it"))]
pub struct Written {
    argument: &'static str,
    pub(super) buffer: Buffer,
    elements: usize,
    storage: Storage,
}

impl Written {
    /// Memory for a result of this many numbers.
    pub(super) fn new(
        engine: &Engine,
        argument: &'static str,
        elements: usize,
        storage: Storage,
    ) -> Result<Self, RunError> {
        let bytes = elements as u64 * u64::from(storage.bytes());
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let buffer = buffer(engine, argument, bytes, usage)?;
        Ok(Self { argument, buffer, elements, storage })
    }

    /// The storage of its numbers.
    #[cfg(feature = "tune")]
    pub(crate) fn storage(&self) -> Storage {
        self.storage
    }

    /// What it is called among the results.
    #[cfg(feature = "tune")]
    pub(crate) fn argument(&self) -> &'static str {
        self.argument
    }

    /// Its view, where there is one order of axes only.
    pub(super) fn view(&self) -> View<'_> {
        View::bhsd(&self.buffer)
    }
}

impl Call {
    /// What `make` submits and asks back.
    pub(crate) fn new(engine: &Engine, make: impl FnOnce(&mut Self) -> Result<(), RunError>) -> Result<Self, RunError> {
        let mut call = Self { engine: engine.clone(), submissions: Vec::new(), results: Vec::new() };
        // A lost device shows as an error of whatever is done with it next.
        let scope = Scope::open(engine.device(), &[ErrorFilter::Validation]);
        let made = make(&mut call);
        match scope.close() {
            Some(error) => made.and(Err(RunError::Device(error.to_string()))),
            None => made.map(|()| call),
        }
    }

    /// Submits what `encode` records, for each slice on its own.
    pub(crate) fn submit(
        &mut self,
        slices: u32,
        encode: impl Fn(&mut CommandEncoder, u32) -> Result<(), EncodeError>,
    ) -> Result<(), RunError> {
        for slice in 0..slices {
            let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
            encode(&mut encoder, slice)?;
            self.submissions.push(self.engine.queue().submit([encoder.finish()]));
        }
        Ok(())
    }

    /// Submits a plan of as many slices, and asks for all results back.
    pub(crate) fn run<P>(&mut self, loaded: &dyn Loaded<P>, plan: &P, slices: u32) -> Result<(), RunError> {
        self.submit(slices, |encoder, slice| loaded.encode_slice(plan, encoder, slice))?;
        loaded.written().into_iter().try_for_each(|written| self.read(written))
    }

    /// Asks for a result back.
    pub(crate) fn read(&mut self, written: &Written) -> Result<(), RunError> {
        let buffer = readable(&self.engine, written.argument, &written.buffer)?;
        self.results.push(Written { buffer, ..*written });
        Ok(())
    }

    /// Asks for all results to be mapped.
    pub(super) fn map(&self) -> Mapping {
        let mapping = Mapping::default();
        self.results.iter().for_each(|result| mapping.map(&result.buffer));
        mapping
    }

    /// The numbers of all results that were asked for, once they are mapped.
    pub(super) fn results(&self) -> Result<Results, RunError> {
        let values = |result: &Written| {
            let bytes = result.buffer.slice(..).get_mapped_range();
            let bytes = bytes.map_err(|error| RunError::Device(error.to_string()))?;
            let mut values = unpacked(&bytes, result.storage);
            // Buffers are never empty, and end at whole words.
            values.truncate(result.elements);
            Ok((result.argument, values))
        };
        self.results.iter().map(values).collect::<Result<_, _>>().map(Results)
    }
}

/// What came back, by name.
pub(crate) struct Results(BTreeMap<&'static str, Vec<f32>>);

impl Results {
    /// A result, where it was asked for.
    #[cfg(feature = "tune")]
    pub(crate) fn get(&self, argument: &str) -> &[f32] {
        self.0.get(argument).map_or(&[], Vec::as_slice)
    }

    /// A result; nothing where it was not asked for.
    pub(super) fn take(&mut self, argument: &str) -> Vec<f32> {
        self.0.remove(argument).unwrap_or_default()
    }
}
