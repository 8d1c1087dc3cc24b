//! How long calls take: by the device's timestamps where they can be believed, else by the wall clock.

use std::time::Instant;

use wgpu::{Buffer, BufferUsages, Features, QuerySet, QuerySetDescriptor, QueryType};

use crate::engine::Engine;
use crate::error::RunError;
use crate::host::{Loaded, buffer};

use super::ticks::{Stale, Ticks};

pub(super) struct Clock<'a> {
    engine: &'a Engine,
    queries: Option<Queries>,
}

struct Queries {
    set: QuerySet,
    resolved: Buffer,
    readable: Buffer,
    read: Ticks,
}

impl<'a> Clock<'a> {
    pub(super) fn new(engine: &'a Engine) -> Result<Self, RunError> {
        let device = engine.device();
        let needed = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        if !device.features().contains(needed) {
            return Ok(Self { engine, queries: None });
        }
        let set = device.create_query_set(&QuerySetDescriptor {
            label: Some("timestamps"),
            ty: QueryType::Timestamp,
            count: 2,
        });
        let resolved = buffer(engine, "timestamps", 16, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC)?;
        let readable = buffer(engine, "timestamps", 16, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        Ok(Self { engine, queries: Some(Queries { set, resolved, readable, read: Ticks::default() }) })
    }

    /// Seconds of `calls` calls of a plan, each slice of all of them submitted on its own.
    pub(super) fn time<P>(&self, loaded: &dyn Loaded<P>, plan: &P, slices: u32, calls: u32) -> Result<f64, RunError> {
        let mut commands = Vec::new();
        for slice in 0..slices {
            let mut encoder = self.engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            if let Some(queries) = self.queries.as_ref().filter(|_| slice == 0) {
                encoder.write_timestamp(&queries.set, 0);
            }
            for _ in 0..calls {
                loaded.encode_slice(plan, &mut encoder, slice)?;
            }
            if let Some(queries) = self.queries.as_ref().filter(|_| slice + 1 == slices) {
                encoder.write_timestamp(&queries.set, 1);
                encoder.resolve_query_set(&queries.set, 0..2, &queries.resolved, 0);
                encoder.copy_buffer_to_buffer(&queries.resolved, 0, &queries.readable, 0, 16);
            }
            commands.push(encoder.finish());
        }
        let blocking = self.engine.blocking();
        let started = Instant::now();
        commands.into_iter().try_for_each(|command| blocking.wait(Some(self.engine.queue().submit([command]))))?;
        let wall = started.elapsed().as_secs_f64();
        let Some(queries) = &self.queries else { return Ok(wall) };

        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&blocking.bytes(&queries.readable)?);
        let period = f64::from(self.engine.queue().get_timestamp_period()) * 1e-9;
        let seconds = queries.read.seconds([ticks[0], ticks[1]], period, wall);
        seconds
            .map(|seconds| seconds.unwrap_or(wall))
            .map_err(|Stale| RunError::Device("a call did not finish".to_owned()))
    }
}
