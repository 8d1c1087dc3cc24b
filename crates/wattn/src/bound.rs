//! From checked operands to bindings of one part of a call.

use wattn_scheduler::{Part, Tokens};
use wgpu::Buffer;

use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::{Resolved, Span};

/// A buffer and what of it is bound; nothing where there is no such operand.
pub(crate) type Bound<'a> = Option<(&'a Buffer, Span)>;

/// Bytes of the widest element that a kernel stores.
const WIDEST: u64 = 16;

/// Binds the operands of a linear operator's call, those of one part.
#[derive(Debug)]
pub(crate) struct Binder<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) extent: Tokens,
    pub(crate) part: Part,
}

impl Binder<'_> {
    /// The rows of a tensor.
    pub(crate) fn rows<'b>(&self, resolved: Option<Resolved<'b>>) -> Result<Bound<'b>, EncodeError> {
        self.bind(resolved, &self.part)
    }

    /// The rows of an output. Without tokens none is written, but what a kernel might write must be bound.
    pub(crate) fn output<'b>(&self, resolved: Option<Resolved<'b>>) -> Result<Bound<'b>, EncodeError> {
        match resolved.filter(Resolved::is_empty) {
            None => self.rows(resolved),
            Some(r) if r.buffer.size() >= WIDEST => Ok(Some((r.buffer, Span::whole(WIDEST)))),
            Some(r) => Err(EncodeError::TooSmall { argument: r.name, needed: WIDEST, available: r.buffer.size() }),
        }
    }

    /// States, one a sequence.
    pub(crate) fn states<'b>(&self, resolved: Option<Resolved<'b>>) -> Result<Bound<'b>, EncodeError> {
        if self.extent.packed {
            return self.bind(resolved, &Part { batch: 0..self.extent.batch, ..self.part.clone() });
        }
        self.bind(resolved, &self.part)
    }

    /// Numbers of heads, the same for all batch entries.
    pub(crate) fn heads<'b>(&self, resolved: Option<Resolved<'b>>) -> Result<Bound<'b>, EncodeError> {
        self.bind(resolved, &Part { batch: 0..1, ..self.part.clone() })
    }

    fn bind<'b>(&self, resolved: Option<Resolved<'b>>, part: &Part) -> Result<Bound<'b>, EncodeError> {
        let capabilities = self.engine.capabilities();
        // Nothing looks at what has no elements.
        let Some(resolved) = resolved.filter(|r| !r.is_empty()) else { return Ok(None) };
        let span = resolved.span(part, u64::from(capabilities.binding_alignment), capabilities.binding_bytes)?;
        Ok(Some((resolved.buffer, span)))
    }
}
