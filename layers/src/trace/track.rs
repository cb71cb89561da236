//! What was enqueued on one stream, with the events that tell its times.
//!
//! The stream's handle pushes [`Entry`]s, as cheaply as possible, under a lock that also keeps commands of several
//! threads and their events together. A [`Collector`], which belongs to the writing thread, takes them in bulk, waits for
//! nothing, and writes a line for each command that is over.

use crate::trace::file::nanoseconds;
use crate::trace::json::{self, Place, When};
use crate::trace::steps::{self, Steps};
use halite_hal::annotate::Label;
use halite_hal::{DeviceId, ErrorKind, Event, Result, driver};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Events of one stream that are kept; beyond, commands get none and are written untimed, so that work which is never
/// over does not eat the driver's events.
const MOST_EVENTS: usize = 1 << 16;
/// Entries of one stream that are kept, with events or without; what is beyond is not kept but written at once.
const MOST_ENTRIES: usize = 1 << 16;
/// Lines that a collector gathers before it passes them on.
const FLUSH_BYTES: usize = 1 << 20;
/// Device times are asked for relative to an event no older than this: drivers that answer in f32 milliseconds
/// (CUDA's `cuEventElapsedTime`) lose microseconds over long spans.
const LONGEST_SPAN_NS: i64 = 1_000_000_000;
/// Marks a command whose device time is not known.
pub(crate) const UNTIMED: &[u8] = b",\"untimed\":true";

/// A point on the stream; `None` where there is no clock, no room, or the driver gave no event.
pub(crate) type Mark = Option<Box<dyn driver::Event>>;

/// Something that was enqueued.
pub(crate) struct Entry {
    /// When the call began.
    pub(crate) at: Instant,
    pub(crate) work: Work,
    /// Recorded before the work, where the stream may have been idle.
    pub(crate) begin: Mark,
    pub(crate) end: End,
}

/// What was enqueued.
pub(crate) enum Work {
    /// A launch of its own.
    Launch { kernel: Box<str>, grid: [u32; 3], read: u64, written: u64, label: Option<Arc<Label>> },
    /// A copy or a fill.
    Transfer { name: &'static str, bytes: u64, label: Option<Arc<Label>> },
    /// The commands of a list one by one, as many as were enqueued.
    Steps(Arc<Steps>, usize),
    /// A list as a whole.
    Replay(Arc<Steps>),
    /// Nothing: from here on the stream may have been held back by another one.
    Wait,
}

/// How the end of an entry is known.
pub(crate) enum End {
    /// By an event.
    Event(Box<dyn driver::Event>),
    /// By one for each of the steps.
    Events(Vec<Mark>),
    /// By the host, which waited for it.
    Host(Instant),
    /// Not at all.
    Unknown,
}

/// What the handle of a stream and the collector share.
#[derive(Default)]
pub(crate) struct Track {
    pending: Mutex<Pending>,
    is_abandoned: AtomicBool,
    /// The device turned out to have no clock.
    is_untimed: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Pending {
    entries: Vec<Entry>,
    /// Events in these entries.
    events: usize,
    /// Entries that the collector has taken and still waits for, when it last looked.
    held_entries: usize,
    /// Events in those.
    held_events: usize,
    /// What came last is not among the entries, since there was no room.
    has_gap: bool,
}

impl Track {
    /// Locks out other threads that enqueue, and the collector.
    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that nothing will be enqueued any more.
    pub(crate) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Release);
    }

    pub(crate) fn set_untimed(&self) {
        self.is_untimed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_untimed(&self) -> bool {
        self.is_untimed.load(Ordering::Relaxed)
    }
}

impl Pending {
    /// Whether another entry, with `more` events, may be kept.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        !self.is_full() && self.events + self.held_events + more <= MOST_EVENTS
    }

    fn is_full(&self) -> bool {
        self.entries.len() + self.held_entries >= MOST_ENTRIES
    }

    /// Whether the stream may be idle, so that the end of what is before says nothing about the beginning of what comes.
    pub(crate) fn may_be_idle(&self) -> bool {
        let is_over = |event: &dyn driver::Event| !matches!(event.is_done(), Ok(false));
        match self.entries.last().map(|entry| &entry.end) {
            _ if self.has_gap => true,
            Some(End::Event(event)) => is_over(event.as_ref()),
            Some(End::Events(events)) => events.last().and_then(Option::as_deref).is_none_or(is_over),
            Some(End::Host(_) | End::Unknown) | None => true,
        }
    }

    /// Keeps an entry, or gives it back where there is no room.
    pub(crate) fn push(&mut self, entry: Entry) -> Option<Entry> {
        self.has_gap = self.is_full();
        if self.has_gap {
            return Some(entry);
        }
        self.events += entry.events();
        self.entries.push(entry);
        None
    }
}

impl Work {
    /// Calls `take` with the part of each line that it gives.
    pub(crate) fn parts(&self, mut take: impl FnMut(&[u8])) {
        match self {
            Self::Launch { kernel, grid, read, written, label } => {
                take(&steps::launch_part(kernel, *grid, (*read, *written), label.as_deref()));
            }
            Self::Transfer { name, bytes, label } => {
                take(&steps::transfer_part(name, *bytes, label.as_deref()))
            }
            Self::Steps(steps, count) => steps.steps.iter().take(*count).for_each(|step| take(step)),
            Self::Replay(steps) => take(&steps.whole),
            Self::Wait => {}
        }
    }
}

/// Device time on the host's axis.
pub(crate) struct Clock {
    base: Event,
    base_ns: i64,
}

impl Clock {
    /// `base` was reached at about this time of the host.
    pub(crate) fn new(base: Event, at: Instant) -> Self {
        Self { base, base_ns: nanoseconds(at) }
    }

    /// When `event`, which is done, was reached: not before `earliest`, not after `latest`.
    fn time(&mut self, event: &dyn driver::Event, earliest: i64, latest: i64) -> Result<i64> {
        let elapsed = event.elapsed_since(&self.base)?;
        let time = self.base_ns.saturating_add(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX));
        // What contradicts causality shows how far the clocks have drifted apart.
        let possible = time.max(earliest).min(latest.max(earliest));
        self.base_ns += possible - time;
        Ok(possible)
    }
}

/// The writing thread's side of a stream.
pub(crate) struct Collector {
    track: Arc<Track>,
    place: Place,
    device: DeviceId,
    clock: Option<Clock>,
    queue: VecDeque<Entry>,
    /// Taken over from the shared side and given back empty, so that neither allocates.
    spare: Vec<Entry>,
    held_events: usize,
    /// When the last command ended.
    last_end: i64,
    has_failed: bool,
}

impl Collector {
    pub(crate) fn new(track: Arc<Track>, place: Place, device: DeviceId, clock: Option<Clock>) -> Self {
        Self {
            track,
            place,
            device,
            clock,
            queue: VecDeque::new(),
            spare: Vec::new(),
            held_events: 0,
            last_end: i64::MIN,
            has_failed: false,
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.track.pending().entries.is_empty()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.track.is_abandoned.load(Ordering::Acquire) && self.is_idle()
    }

    /// Passes lines of what is over to `write`, behind those in `out`; with `everything`, also of what is not, untimed.
    /// Says whether nothing is left.
    pub(crate) fn collect(
        &mut self,
        out: &mut Vec<u8>,
        everything: bool,
        mut write: impl FnMut(&mut Vec<u8>),
    ) -> bool {
        {
            let mut pending = self.track.pending();
            std::mem::swap(&mut pending.entries, &mut self.spare);
            self.held_events += std::mem::take(&mut pending.events);
            pending.held_events = self.held_events;
            pending.held_entries = self.queue.len() + self.spare.len();
        }
        self.queue.extend(self.spare.drain(..));
        while self.queue.front().is_some_and(|entry| everything || entry.is_over())
            && let Some(entry) = self.queue.pop_front()
        {
            self.held_events -= entry.events();
            self.write(out, entry);
            if out.len() >= FLUSH_BYTES {
                write(out);
            }
        }
        let mut pending = self.track.pending();
        pending.held_events = self.held_events;
        pending.held_entries = self.queue.len();
        self.queue.is_empty()
    }

    fn write(&mut self, out: &mut Vec<u8>, entry: Entry) {
        let enqueued = nanoseconds(entry.at);
        let seen = nanoseconds(Instant::now());
        let begun = match entry.begin.as_deref().map(|event| self.reached(event, enqueued, seen)) {
            Some(Reached::At(time)) => time,
            _ => enqueued,
        };
        let begin = begun.max(self.last_end);
        match (&entry.work, entry.end) {
            (Work::Steps(steps, _), End::Events(events)) => {
                let mut begin = begin;
                for (step, event) in steps.steps.iter().zip(events) {
                    let end = match event.as_deref() {
                        Some(event) => self.reached(event, enqueued, seen),
                        None => Reached::Unknown,
                    };
                    begin = self.line(out, begin, &end, enqueued, step);
                    self.rebase(event);
                }
            }
            (work, end) => {
                let (reached, event) = match end {
                    End::Event(event) => (self.reached(event.as_ref(), enqueued, seen), Some(event)),
                    End::Host(at) => (Reached::At(nanoseconds(at)), None),
                    End::Events(_) | End::Unknown => (Reached::Unknown, None),
                };
                work.parts(|part| _ = self.line(out, begin, &reached, enqueued, part));
                self.rebase(event);
            }
        }
    }

    /// Writes one command; returns when the next may have begun.
    fn line(&mut self, out: &mut Vec<u8>, begin: i64, end: &Reached, enqueued: i64, part: &[u8]) -> i64 {
        match end {
            Reached::At(end) => {
                let end = begin.max(*end);
                json::line(out, self.place, When::Span { begin, end }, part, b"");
                self.last_end = end;
                self.has_failed = false;
                end
            }
            Reached::Unknown => {
                json::line(out, self.place, When::At(enqueued), part, UNTIMED);
                begin
            }
            Reached::Failed(error) => {
                if self.has_failed {
                    json::line(out, self.place, When::At(enqueued), part, b",\"skipped\":true");
                } else {
                    let mut failure = Vec::new();
                    json::text_field(&mut failure, "failed", error);
                    json::line(out, self.place, When::At(enqueued), part, &failure);
                }
                self.has_failed = true;
                begin
            }
        }
    }

    /// When an event was reached, or why it never will be.
    fn reached(&mut self, event: &dyn driver::Event, earliest: i64, latest: i64) -> Reached {
        match event.is_done() {
            Ok(true) => {}
            Ok(false) => return Reached::Unknown,
            Err(error) => return Reached::Failed(error.to_string()),
        }
        let Some(clock) = &mut self.clock else { return Reached::Unknown };
        match clock.time(event, earliest, latest) {
            Ok(time) => Reached::At(time),
            Err(error) => {
                if matches!(error.kind(), ErrorKind::Unsupported) {
                    self.clock = None;
                    self.track.set_untimed();
                }
                Reached::Unknown
            }
        }
    }

    /// Measures from `event` on, if the last base lies far back.
    fn rebase(&mut self, event: Mark) {
        if let (Some(event), Some(clock)) = (event, &mut self.clock)
            && self.last_end.saturating_sub(clock.base_ns) > LONGEST_SPAN_NS
            && matches!(event.is_done(), Ok(true))
        {
            *clock = Clock { base: Event::new(self.device.clone(), event), base_ns: self.last_end };
        }
    }
}

/// When a command ended, as far as that is known.
enum Reached {
    At(i64),
    Unknown,
    Failed(String),
}

impl Entry {
    fn events(&self) -> usize {
        let ends = match &self.end {
            End::Event(_) => 1,
            End::Events(events) => events.len(),
            End::Host(_) | End::Unknown => 0,
        };
        ends + usize::from(self.begin.is_some())
    }

    /// Whether nothing more will be learnt about it.
    fn is_over(&self) -> bool {
        let is_over = |event: &dyn driver::Event| !matches!(event.is_done(), Ok(false));
        match &self.end {
            End::Event(event) => is_over(event.as_ref()),
            End::Events(events) => {
                events.iter().rev().flatten().next().is_none_or(|event| is_over(event.as_ref()))
            }
            End::Host(_) | End::Unknown => true,
        }
    }
}
