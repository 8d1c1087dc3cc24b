//! Buffers on their way into the host's memory.

use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use wgpu::{Buffer, Device, MapMode, PollType};

use crate::error::RunError;

/// Buffers being mapped. Whichever thread polls the device hears of it, so that the poll of the thread that waits may return before.
#[derive(Clone, Default)]
pub(crate) struct Mapping(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pending: usize,
    failure: Option<String>,
    waker: Option<Waker>,
}

impl Mapping {
    /// Asks for a buffer to be mapped for reading.
    pub(crate) fn map(&self, buffer: &Buffer) {
        self.state().pending += 1;
        let mapping = self.clone();
        buffer.slice(..).map_async(MapMode::Read, move |result| {
            let mut state = mapping.state();
            state.pending -= 1;
            if let Err(error) = result {
                state.failure = Some(error.to_string());
            }
            let waker = state.waker.take();
            drop(state);
            mapping.0.changed.notify_all();
            // May run what it wakes, which asks for the state.
            waker.into_iter().for_each(Waker::wake);
        });
    }

    /// Is ready when all are mapped, or failed. On native targets each poll of the future polls the device.
    pub(super) async fn mapped(&self, device: &Device) -> Result<(), RunError> {
        poll_fn(|context| {
            // In browsers the device polls itself.
            let lost = device.poll(PollType::Poll).err();
            match (lost, self.poll(context.waker())) {
                (Some(error), _) => Poll::Ready(Err(RunError::Device(error.to_string()))),
                (None, Some(result)) => Poll::Ready(result),
                (None, None) => {
                    if !cfg!(target_arch = "wasm32") {
                        context.waker().wake_by_ref();
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Whether all are mapped, or failed; else the waker is kept.
    fn poll(&self, waker: &Waker) -> Option<Result<(), RunError>> {
        let mut state = self.state();
        if state.pending == 0 {
            return Some(state.result());
        }
        state.waker = Some(waker.clone());
        None
    }

    /// Waits until all are mapped, of a device that is done or that others poll.
    pub(super) fn wait(&self, timeout: Duration) -> Result<(), RunError> {
        let waited = self.0.changed.wait_timeout_while(self.state(), timeout, |state| state.pending > 0);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(RunError::Device("a finished buffer was not mapped in time".to_owned()));
        }
        state.result()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn result(&mut self) -> Result<(), RunError> {
        self.failure.take().map_or(Ok(()), |failure| Err(RunError::Device(failure)))
    }
}
