//! Errors of the device, told by the call that causes them.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wgpu::{Backend, Device, Error, ErrorFilter, ErrorScopeGuard};

/// What goes wrong on the device between [`open`](Self::open) and [`close`](Self::close).
///
/// In browsers nothing is caught: there a scope has its error later than `close` could tell, and nobody else would hear of it. So it
/// reaches the scopes of [`Engine::on_host`](crate::Engine::on_host), or the device's `on_uncaptured_error`.
pub(crate) struct Scope(Vec<ErrorScopeGuard>);

impl Scope {
    pub(crate) fn open(device: &Device, filters: &[ErrorFilter]) -> Self {
        let filters = if device.adapter_info().backend == Backend::BrowserWebGpu { &[] } else { filters };
        Self(filters.iter().map(|&filter| device.push_error_scope(filter)).collect())
    }

    /// The first error, by the filters from last to first.
    pub(crate) fn close(self) -> Option<Error> {
        popped(self.0).filter_map(ready).fold(None, Option::or)
    }
}

/// Scopes are closed in the order in which they nest; all of them, whether they have errors or not.
pub(crate) fn popped(scopes: Vec<ErrorScopeGuard>) -> impl Iterator<Item = impl Future<Output = Option<Error>>> {
    scopes.into_iter().rev().map(ErrorScopeGuard::pop)
}

/// The value of a future that is ready at once, as those of scopes are everywhere but in browsers.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
