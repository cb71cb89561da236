//! A stream whose commands are noted, with events that tell when they ran.

use crate::trace::Detail;
use crate::trace::device::Shared;
use crate::trace::file::nanoseconds;
use crate::trace::json::{Place, When, number_field};
use crate::trace::steps::{does_something, launch_traffic};
use crate::trace::track::{Clock, Collector, End, Entry, Mark, Pending, Track, UNTIMED, Work};
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{
    Arg, Binding, BufferSlice, Command, CommandList, ErrorKind, Event, Kernel, Result, Scalar, annotate,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A write of at most this size into a stream at rest may be done by the calling thread, on the spot: an event before
/// or behind it would take that from it, and the call's own time says as much.
const SHORT_WRITE_BYTES: u64 = 64 << 10;
/// Streams are numbered from here in the timeline, behind the host threads.
const FIRST_STREAM: u32 = 100_000;
/// Attempts to place a stream's clock on the host's axis; the narrowest counts, and one as narrow as this is enough. The
/// error is at most half the width.
const CLOCK_READINGS: usize = 12;
const CLOCK_WIDTH: Duration = Duration::from_micros(3);
/// The longest that such an attempt waits. Work that hangs must not keep a stream from being made.
const CLOCK_WAIT: Duration = Duration::from_millis(50);

/// The layer's stream.
pub(crate) struct TraceStream {
    inner: Box<dyn driver::Stream>,
    device: Arc<Shared>,
    track: Arc<Track>,
    place: Place,
    number: u32,
}

impl TraceStream {
    pub(crate) fn new(inner: Box<dyn driver::Stream>, device: Arc<Shared>, number: u32) -> Self {
        let track = Arc::new(Track::default());
        let clock = read_clock(&*inner, &device);
        if clock.is_none() {
            track.set_untimed();
        }
        let place = Place { process: device.log.process, thread: FIRST_STREAM + number };
        let collector = Collector::new(track.clone(), place, device.inner.id().clone(), clock);
        let untimed = if track.is_untimed() { " (without device times)" } else { "" };
        device.log.file.add_track(&format!("stream {number}{untimed}"), collector);
        Self { inner, device, track, place, number }
    }

    /// Enqueues with `call`, between the events that it needs.
    fn enqueue(&self, work: impl FnOnce() -> Work, call: impl FnOnce() -> Result<()>) -> Result<()> {
        let at = Instant::now();
        let mut pending = self.track.pending();
        let begin = self.begin_mark(&pending);
        call()?;
        let end = self.mark(&pending).map_or(End::Unknown, End::Event);
        self.note(&mut pending, Entry { at, work: work(), begin, end });
        Ok(())
    }

    /// As [`enqueue`](Self::enqueue) for copies from the host: without an event before those into a stream at rest, and
    /// with none at all for short ones of these.
    fn enqueue_write(&self, bytes: u64, call: impl FnOnce() -> Result<()>) -> Result<()> {
        let at = Instant::now();
        let mut pending = self.track.pending();
        let begin = if pending.may_be_idle() { None } else { self.mark(&pending) };
        call()?;
        // Looked at behind the call: if all before is over now, the copy is done, or about to be.
        let (begin, end) = if bytes <= SHORT_WRITE_BYTES && pending.may_be_idle() {
            (None, End::Host(Instant::now()))
        } else {
            (begin, self.mark(&pending).map_or(End::Unknown, End::Event))
        };
        self.note(&mut pending, Entry { at, work: transfer("write", bytes), begin, end });
        Ok(())
    }

    /// Keeps an entry for the collector. Where too many are kept already, it is written now, without device times.
    fn note(&self, pending: &mut Pending, entry: Entry) {
        let Some(Entry { at, work, .. }) = pending.push(entry) else { return };
        let at = When::At(nanoseconds(at));
        work.parts(|part| self.device.log.file.add_line(self.place, at, part, UNTIMED));
    }

    /// An event before the next command, if the stream may be idle.
    fn begin_mark(&self, pending: &Pending) -> Mark {
        if pending.may_be_idle() { self.mark(pending) } else { None }
    }

    fn mark(&self, pending: &Pending) -> Mark {
        if self.track.is_untimed() || !pending.has_room(1) {
            return None;
        }
        self.inner.record().ok()
    }

    /// Enqueues the commands of a list one by one, with an event behind each.
    fn enqueue_steps(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        let steps = self.device.steps(list);
        let at = Instant::now();
        let mut pending = self.track.pending();
        // Also into a busy stream: one event more tells how long the device took to come to the list.
        let begin = self.mark(&pending);
        let is_timed = !self.track.is_untimed() && pending.has_room(steps.steps.len() + 1);
        let mut events = Vec::with_capacity(if is_timed { steps.steps.len() } else { 0 });
        let mut count = 0;
        let result = list.enqueue(buffers, scalars, |command| {
            match command {
                Command::Copy { dst, src } => self.inner.copy(&dst, &src)?,
                Command::Fill { dst, pattern } => self.inner.fill(&dst, &pattern)?,
                Command::Launch { grid, .. } if grid.contains(&0) => return Ok(()),
                Command::Launch { kernel, grid, args } => self.inner.launch(&kernel, grid, &args)?,
            }
            count += 1;
            if is_timed {
                events.push(self.inner.record().ok());
            }
            Ok(())
        });
        if count > 0 {
            let end = if is_timed { End::Events(events) } else { End::Unknown };
            self.note(&mut pending, Entry { at, work: Work::Steps(steps, count), begin, end });
        }
        result
    }

    /// Notes a call that blocked the calling thread.
    fn note_blocking(&self, name: &str, begin: Instant, bytes: Option<u64>) {
        self.device.log.span(name, begin, |out| {
            number_field(out, "stream", self.number.into());
            if let Some(bytes) = bytes {
                number_field(out, "bytes", bytes);
            }
        });
    }
}

impl Drop for TraceStream {
    fn drop(&mut self) {
        self.track.abandon();
    }
}

impl driver::Stream for TraceStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        self.enqueue_write(dst.len_bytes(), || self.inner.write(dst, src))
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        // Not under the lock of `enqueue_write`, since it may wait for all work before it.
        let at = Instant::now();
        self.inner.write_blocking(dst, src)?;
        let returned = Instant::now();
        let mut pending = self.track.pending();
        let end = if dst.len_bytes() > SHORT_WRITE_BYTES {
            self.mark(&pending).map_or(End::Host(returned), End::Event)
        } else {
            End::Host(returned)
        };
        self.note(&mut pending, Entry { at, work: transfer("write", dst.len_bytes()), begin: None, end });
        drop(pending);
        self.note_blocking("write", at, Some(dst.len_bytes()));
        Ok(())
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        let at = Instant::now();
        let result = self.inner.read_blocking(src, dst);
        if result.is_ok() {
            let end = End::Host(Instant::now());
            let work = transfer("read", src.len_bytes());
            self.note(&mut self.track.pending(), Entry { at, work, begin: None, end });
        }
        self.note_blocking("read", at, Some(src.len_bytes()));
        result
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.enqueue(|| transfer("read", src.len_bytes()), || self.inner.read(src, dst))
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.enqueue(|| transfer("copy", dst.len_bytes()), || self.inner.copy(dst, src))
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.enqueue(|| transfer("fill", dst.len_bytes()), || self.inner.fill(dst, pattern))
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let work = || {
            let (read, written) = launch_traffic(kernel, args);
            Work::Launch { kernel: kernel.name().into(), grid, read, written, label: annotate::current() }
        };
        self.enqueue(work, || self.inner.launch(kernel, grid, args))
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        let is_apart = match self.device.detail {
            Detail::Brief => false,
            Detail::Loops => !list.is_native(),
            Detail::Every => true,
        };
        if is_apart {
            return self.enqueue_steps(list, buffers, scalars);
        }
        if !list.commands().iter().any(does_something) {
            return self.inner.replay(list, buffers, scalars);
        }
        let steps = self.device.steps(list);
        self.enqueue(|| Work::Replay(steps), || self.inner.replay(list, buffers, scalars))
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        self.inner.record()
    }

    fn wait(&self, event: &Event) -> Result<()> {
        let at = Instant::now();
        let mut pending = self.track.pending();
        self.inner.wait(event)?;
        // The next command begins after the wait, however long that takes: it gets an event before it.
        self.note(&mut pending, Entry { at, work: Work::Wait, begin: None, end: End::Unknown });
        Ok(())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let begin = Instant::now();
        let result = self.inner.synchronize(timeout);
        self.note_blocking("synchronize", begin, None);
        result
    }

    fn reset(&self) -> Result<()> {
        let begin = Instant::now();
        let result = self.inner.reset();
        self.note_blocking("reset", begin, None);
        result
    }
}

fn transfer(name: &'static str, bytes: u64) -> Work {
    Work::Transfer { name, bytes, label: annotate::current() }
}

/// Places the clock of a new stream on the host's axis; `None` without one.
fn read_clock(stream: &dyn driver::Stream, device: &Shared) -> Option<Clock> {
    let mut best: Option<(Duration, Event, Instant)> = None;
    for _ in 0..CLOCK_READINGS {
        let begin = Instant::now();
        let event = Event::new(device.inner.id().clone(), stream.record().ok()?);
        let waited = event.wait(Some(CLOCK_WAIT));
        let width = begin.elapsed();
        if best.as_ref().is_none_or(|(narrowest, ..)| width < *narrowest) {
            best = Some((width, event, begin + width / 2));
        }
        if waited.is_err() || width <= CLOCK_WIDTH {
            break;
        }
    }
    let (_, base, at) = best?;
    match base.elapsed_since(&base) {
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported) => None,
        // If it is not over yet, causality places it later on.
        _ => Some(Clock::new(base, at)),
    }
}
