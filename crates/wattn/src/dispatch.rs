//! Dispatches that are ready to record, and their recording.

use std::sync::Arc;

use wattn_scheduler::shaders::{Key, bindings};
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, Buffer, BufferBinding, CommandEncoder,
    ComputePass, ComputePassDescriptor,
};

use crate::engine::{Engine, Pipeline};
use crate::error::{EncodeError, PlanError};
use crate::operands::Span;
use crate::ring::Lease;

/// How many workgroups.
pub(crate) enum Grid {
    /// So many.
    Known([u32; 2]),
    /// As many as three words of a buffer say, which begin at this byte.
    Told(Buffer, u64),
}

/// One dispatch, ready to record.
pub(crate) struct Dispatch {
    pipeline: Arc<Pipeline>,
    bind_group: BindGroup,
    grid: Grid,
    lease: Lease,
}

impl Dispatch {
    /// Binds `bound` (slots 0 to 6; what is missing and read is never looked at) and the parameters `words` (slot 7).
    pub(crate) fn new(
        engine: &Engine,
        key: &Key,
        bound: &[Option<(&Buffer, Span)>; 7],
        words: &[u32],
        grid: impl Into<Grid>,
    ) -> Result<Self, EncodeError> {
        let pipeline = engine.pipeline(key)?;
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let (needed, available) = (bytes.len() as u64, engine.capabilities().binding_bytes);
        if needed > available {
            let (unit, advice) = ("bytes of lengths and lists of work", "; fewer sequences at a time would do");
            return Err(PlanError::Limit { argument: "extent", needed, available, unit, advice }.into());
        }
        let slot = engine.inner.ring.slot(engine.device(), bytes.len() as u64);
        engine.queue().write_buffer(&slot.buffer, slot.offset, bytes);
        let entries: Vec<BindGroupEntry<'_>> = bindings(key)
            .into_iter()
            .map(|binding| {
                let (buffer, span) = match bound.get(binding.slot as usize) {
                    Some(&Some((buffer, span))) => (buffer, (span.offset, span.size)),
                    _ => (&slot.buffer, (slot.offset, slot.size)),
                };
                let resource = BufferBinding { buffer, offset: span.0, size: wgpu::BufferSize::new(span.1) };
                BindGroupEntry { binding: binding.slot, resource: BindingResource::Buffer(resource) }
            })
            .collect();
        let bind_group = engine.device().create_bind_group(&BindGroupDescriptor {
            label: Some("wattn"),
            layout: &pipeline.layout,
            entries: &entries,
        });
        Ok(Self { pipeline, bind_group, grid: grid.into(), lease: slot.lease })
    }

    fn record(&self, pass: &mut ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        match &self.grid {
            Grid::Known([x, y]) => pass.dispatch_workgroups(*x, *y, 1),
            Grid::Told(buffer, offset) => pass.dispatch_workgroups_indirect(buffer, *offset),
        }
    }
}

impl From<[u32; 2]> for Grid {
    fn from(grid: [u32; 2]) -> Self {
        Self::Known(grid)
    }
}

/// Records dispatches in a compute pass of their own. Their slots return when the submission is done.
pub(crate) fn encode(encoder: &mut CommandEncoder, dispatches: Vec<Dispatch>) {
    if dispatches.is_empty() {
        return;
    }
    let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor { label: Some("wattn"), timestamp_writes: None });
    for dispatch in &dispatches {
        dispatch.record(&mut pass);
    }
    drop(pass);
    let leases: Vec<Lease> = dispatches.into_iter().map(|d| d.lease).collect();
    encoder.on_submitted_work_done(move || drop(leases));
}

/// Records dispatches in a compute pass that is open.
pub(crate) fn encode_in_pass(pass: &mut ComputePass<'_>, dispatches: Vec<Dispatch>) {
    for dispatch in dispatches {
        dispatch.record(pass);
        pass.on_submitted_work_done(move || drop(dispatch.lease));
    }
}
