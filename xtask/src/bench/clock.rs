//! How long something takes on the device: by its own timestamps where they can be believed, else by the wall clock.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use wattn::wgpu::{
    self, Buffer, BufferUsages, CommandEncoder, ComputePass, ComputePassTimestampWrites, Device, Features, QuerySet,
    Queue,
};

use super::stats::Timer;
use super::ticks::{Stale, Ticks};

/// What a device may take for one submission.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Times work on one device.
pub(crate) struct Clock {
    device: Device,
    queue: Queue,
    queries: Option<Queries>,
    /// Why the device was lost, once it is: submissions to such a device succeed, and take no time.
    lost: Arc<OnceLock<String>>,
}

struct Queries {
    set: QuerySet,
    resolved: Buffer,
    readable: Buffer,
    /// Seconds a tick.
    period: f64,
    in_encoders: bool,
    read: Ticks,
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

    /// By this clock.
    pub(crate) fn by(self, clock: Timer) -> Option<f64> {
        match clock {
            Timer::Gpu => self.gpu,
            Timer::Wall => Some(self.wall),
        }
    }

    /// One of `count` equal parts.
    pub(crate) fn of(self, count: u32) -> Self {
        let count = f64::from(count);
        Self { gpu: self.gpu.map(|s| s / count), wall: self.wall / count }
    }
}

impl Clock {
    /// The clock of a device, which tells only one that it is lost; timestamps need the feature on the device.
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
                in_encoders: features.contains(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
                read: Ticks::default(),
            }
        });
        let lost = Arc::new(OnceLock::new());
        let told = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            told.get_or_init(|| format!("{reason:?}, {message}"));
        });
        Self { device: device.clone(), queue: queue.clone(), queries, lost }
    }

    /// The time of what `record` puts into one compute pass.
    pub(crate) fn pass(&self, record: impl FnOnce(&mut ComputePass<'_>) -> Result<()>) -> Result<Sample> {
        let mut encoder = self.encoder();
        let mut pass = self.timed(&mut encoder, true, true);
        record(&mut pass)?;
        drop(pass);
        self.submit(vec![encoder], self.queries.as_ref())
    }

    /// The time of what is not one pass: copies, or a call that is submitted in pieces, one after the other.
    pub(crate) fn slices(
        &self,
        slices: u32,
        mut record: impl FnMut(&mut CommandEncoder, u32) -> Result<()>,
    ) -> Result<Sample> {
        let queries = self.queries.as_ref().filter(|queries| queries.in_encoders);
        let mut encoders = Vec::new();
        for slice in 0..slices {
            let mut encoder = self.encoder();
            if let Some(queries) = queries.filter(|_| slice == 0) {
                encoder.write_timestamp(&queries.set, 0);
            }
            record(&mut encoder, slice)?;
            if let Some(queries) = queries.filter(|_| slice + 1 == slices) {
                encoder.write_timestamp(&queries.set, 1);
            }
            encoders.push(encoder);
        }
        self.submit(encoders, queries)
    }

    /// The time of a few dispatches, one of `count` times in a pass. What comes once may be long: each dispatch is submitted alone, since
    /// drivers reset a GPU that is busy for seconds.
    pub(crate) fn dispatches(
        &self,
        count: u32,
        dispatches: u32,
        dispatch: impl Fn(&mut ComputePass<'_>, u32),
    ) -> Result<Sample> {
        if count == 1 {
            let encoders = (0..dispatches).map(|n| {
                let mut encoder = self.encoder();
                dispatch(&mut self.timed(&mut encoder, n == 0, n + 1 == dispatches), n);
                encoder
            });
            return self.submit(encoders.collect(), self.queries.as_ref());
        }
        let sample = self.pass(|pass| {
            (0..count).for_each(|_| (0..dispatches).for_each(|n| dispatch(pass, n)));
            Ok(())
        });
        Ok(sample?.of(count))
    }

    /// The seconds of submissions one after the other, by the wall clock.
    pub(crate) fn submissions(&self, encoders: Vec<CommandEncoder>) -> Result<f64> {
        let commands: Vec<_> = encoders.into_iter().map(CommandEncoder::finish).collect();
        let started = Instant::now();
        for command in commands {
            self.queue.submit([command]);
        }
        self.wait()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// An encoder, for [`submissions`](Self::submissions).
    pub(crate) fn encoder(&self) -> CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// A pass; the first writes a timestamp at its beginning, the last one at its end.
    fn timed<'a>(&self, encoder: &'a mut CommandEncoder, first: bool, last: bool) -> ComputePass<'a> {
        let timestamp_writes =
            self.queries.as_ref().filter(|_| first || last).map(|queries| ComputePassTimestampWrites {
                query_set: &queries.set,
                beginning_of_pass_write_index: first.then_some(0),
                end_of_pass_write_index: last.then_some(1),
            });
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("timed"), timestamp_writes })
    }

    fn submit(&self, mut encoders: Vec<CommandEncoder>, queries: Option<&Queries>) -> Result<Sample> {
        if let (Some(queries), Some(encoder)) = (queries, encoders.last_mut()) {
            encoder.resolve_query_set(&queries.set, 0..2, &queries.resolved, 0);
            encoder.copy_buffer_to_buffer(&queries.resolved, 0, &queries.readable, 0, 16);
        }
        let wall = self.submissions(encoders)?;
        let Some(queries) = queries else { return Ok(Sample { gpu: None, wall }) };
        let gpu = queries.read.seconds(self.ticks(queries)?, queries.period, wall);
        let gpu = gpu.map_err(|Stale| anyhow!("the device did not finish, or is lost"))?;
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
        match self.lost.get() {
            Some(why) => bail!("the device is lost: {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_has_no_times() {
        let (device, queue) = Device::noop(&wgpu::DeviceDescriptor::default());
        let clock = Clock::new(&device, &queue);
        clock.slices(2, |_, _| Ok(())).expect("a device that works");
        device.destroy();
        let error = clock.slices(2, |_, _| Ok(())).expect_err("no device").to_string();
        assert!(error.contains("is lost: Destroyed"), "{error}");
    }
}
