//! How long something takes on the device: by its own timestamps where they can be believed, else by the wall clock.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wattn::wgpu::{
    self, Buffer, BufferUsages, CommandEncoder, ComputePass, ComputePassTimestampWrites, Device, Features, QuerySet,
    Queue,
};

/// What a device may take for one submission.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Times work on one device.
pub(crate) struct Clock {
    device: Device,
    queue: Queue,
    queries: Option<Queries>,
}

struct Queries {
    set: QuerySet,
    resolved: Buffer,
    readable: Buffer,
    /// Seconds a tick.
    period: f64,
    around_copies: bool,
}

/// One measurement, seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// From timestamps, where they are there and plausible.
    pub(crate) gpu: Option<f64>,
    /// From before the submission to its end.
    pub(crate) wall: f64,
}

impl Sample {
    /// By the device's own clock if that can be.
    pub(crate) fn seconds(self) -> f64 {
        self.gpu.unwrap_or(self.wall)
    }

    /// One of `count` equal parts.
    pub(crate) fn of(self, count: u32) -> Self {
        let count = f64::from(count);
        Self { gpu: self.gpu.map(|s| s / count), wall: self.wall / count }
    }
}

impl Clock {
    /// A clock; timestamps need the feature on the device.
    pub(crate) fn new(device: &Device, queue: &Queue) -> Self {
        let features = device.features();
        let queries = features.contains(Features::TIMESTAMP_QUERY).then(|| {
            let buffer = |usage| {
                let descriptor =
                    wgpu::BufferDescriptor { label: Some("timestamps"), size: 16, usage, mapped_at_creation: false };
                device.create_buffer(&descriptor)
            };
            Queries {
                set: device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("timestamps"),
                    ty: wgpu::QueryType::Timestamp,
                    count: 2,
                }),
                resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
                readable: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
                period: f64::from(queue.get_timestamp_period()) * 1e-9,
                around_copies: features.contains(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
            }
        });
        Self { device: device.clone(), queue: queue.clone(), queries }
    }

    /// The time of what `record` puts into one compute pass.
    pub(crate) fn pass(&self, record: impl FnOnce(&mut ComputePass<'_>) -> Result<()>) -> Result<Sample> {
        let mut encoder = self.encoder();
        let timestamp_writes = self.queries.as_ref().map(|queries| ComputePassTimestampWrites {
            query_set: &queries.set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some("timed"), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        record(&mut pass)?;
        drop(pass);
        self.submit(encoder, self.queries.as_ref())
    }

    /// The time of copies, which lie outside of passes.
    pub(crate) fn copies(&self, record: impl FnOnce(&mut CommandEncoder)) -> Result<Sample> {
        let queries = self.queries.as_ref().filter(|queries| queries.around_copies);
        let mut encoder = self.encoder();
        if let Some(queries) = queries {
            encoder.write_timestamp(&queries.set, 0);
        }
        record(&mut encoder);
        if let Some(queries) = queries {
            encoder.write_timestamp(&queries.set, 1);
        }
        self.submit(encoder, queries)
    }

    /// The time of several submissions one after the other, by the wall clock.
    pub(crate) fn submissions(&self, encoders: Vec<CommandEncoder>) -> Result<Sample> {
        let commands: Vec<_> = encoders.into_iter().map(CommandEncoder::finish).collect();
        let started = Instant::now();
        for command in commands {
            self.queue.submit([command]);
        }
        self.wait()?;
        Ok(Sample { gpu: None, wall: started.elapsed().as_secs_f64() })
    }

    /// An encoder, for [`submissions`](Self::submissions).
    pub(crate) fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    fn submit(&self, mut encoder: CommandEncoder, queries: Option<&Queries>) -> Result<Sample> {
        if let Some(queries) = queries {
            encoder.resolve_query_set(&queries.set, 0..2, &queries.resolved, 0);
            encoder.copy_buffer_to_buffer(&queries.resolved, 0, &queries.readable, 0, 16);
        }
        let Sample { wall, .. } = self.submissions(vec![encoder])?;
        let gpu = match queries {
            Some(queries) => plausible(self.ticks(queries)?, queries.period, wall),
            None => None,
        };
        Ok(Sample { gpu, wall })
    }

    fn ticks(&self, queries: &Queries) -> Result<[u64; 2]> {
        let slice = queries.readable.slice(..);
        slice.map_async(wgpu::MapMode::Read, |_| ());
        self.wait()?;
        let bytes = slice.get_mapped_range().context("timestamps were not mapped")?.to_vec();
        queries.readable.unmap();
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
        Ok([ticks[0], ticks[1]])
    }

    fn wait(&self) -> Result<()> {
        let all = wgpu::PollType::Wait { submission_index: None, timeout: Some(TIMEOUT) };
        self.device.poll(all).context("waiting for the device")?;
        Ok(())
    }
}

/// The seconds between two timestamps. Some drivers write zeros or the end before the beginning; and nothing that was waited for
/// took longer than the wait.
fn plausible([begin, end]: [u64; 2], period: f64, wall: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a difference of ticks")]
    let seconds = end.checked_sub(begin)? as f64 * period;
    (begin > 0 && seconds > 0.0 && seconds <= wall).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implausible_timestamps_are_refused() {
        assert_eq!(plausible([1_024, 3_072], 0.5, 1e9), Some(1_024.0));
        for ticks in [[0, 0], [7, 7], [9, 8], [0, 5], [1, 2_000_000_000]] {
            assert_eq!(plausible(ticks, 1e-9, 1.0), None, "{ticks:?}");
        }
    }
}
