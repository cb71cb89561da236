//! What the layer keeps for one opening of a device.

use super::books::{Books, Operation, Problem, Use, Watch};
use super::clock::Clock;
use super::finding::FindingKind;
use super::object::{BufferMark, Living, Suspects, Tracked, leaks};
use super::report::{Draft, Reporter, Sink};
use super::shadow::Deed;
use super::zone::{self, Zones};
use super::{host, lock};
use halite_hal::{Device, Error, ErrorKind, MemoryKind, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Shared by the wrapped device and everything that it makes.
pub(super) struct State {
    pub(super) inner: Device,
    /// Refuse what is merely suspicious too.
    is_strict: bool,
    pub(super) reporter: Reporter,
    pub(super) zones: Zones,
    pub(super) living: Mutex<Living>,
    /// Of all devices of the layer: streams may wait for events of other devices.
    books: Arc<Mutex<Books>>,
    /// Streams so far.
    streams: AtomicU64,
    /// Buffers that kernels were given to write since their zones were looked at.
    suspects: Mutex<Suspects>,
    /// The first reason, once the caller has been told.
    lost: OnceLock<String>,
    calls: AtomicU64,
    is_closed: AtomicBool,
}

impl State {
    pub(super) fn new(inner: Device, is_strict: bool, sink: Sink, books: Arc<Mutex<Books>>) -> Self {
        let reporter = Reporter::new(inner.id().clone(), sink);
        Self {
            inner,
            is_strict,
            reporter,
            zones: Zones::default(),
            living: Mutex::default(),
            books,
            streams: AtomicU64::new(0),
            suspects: Mutex::default(),
            lost: OnceLock::new(),
            calls: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Tries the device out before anyone uses it; whether it is without this layer so far.
    pub(super) fn probe(&self) -> bool {
        let Ok(memory) = self.inner.allocate(zone::BYTES, MemoryKind::Device) else { return true };
        let is_bare = memory.object::<BufferMark>().is_none();
        if is_bare {
            self.zones.probe(&self.inner, &memory);
        }
        is_bare
    }

    /// A call that gives the device something to do.
    ///
    /// # Errors
    /// The loss, once a call has failed with it: the driver is not asked again.
    pub(super) fn enter(&self, call: &str) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Some(reason) = self.lost.get() else { return Ok(()) };
        self.reporter.report(Draft {
            kind: FindingKind::AfterLoss,
            key: call.to_owned(),
            object: self.inner.id().to_string(),
            message: format!("{call} on a device that has said it is lost: {reason}"),
            origin: None,
            remedy: "open the device anew and make its objects again; nothing of the lost one can be used"
                .to_owned(),
        });
        Err(Error::new(ErrorKind::DeviceLost, reason.clone()))
    }

    /// Takes note of a loss that the caller is about to be told of.
    pub(super) fn pass<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && *error.kind() == ErrorKind::DeviceLost
        {
            self.lost.get_or_init(|| error.message().to_owned());
        }
        result
    }

    /// Whether both are of one layer, and so order their work by the same clocks.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.books, &other.books)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    pub(super) fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Reports what must not reach the driver; the error for the caller.
    pub(super) fn refuse(&self, draft: Draft) -> Error {
        let error = Error::invalid(format!("{}; {}", draft.message, draft.remedy));
        self.reporter.report(draft);
        error
    }

    pub(super) fn open_stream(&self) -> (u32, u64) {
        let number = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        (lock(&self.books).open(number), number)
    }

    pub(super) fn close_stream(&self, slot: u32) {
        lock(&self.books).close(slot);
    }

    /// Everything that a stream's next operation comes after.
    pub(super) fn now(&self, slot: u32) -> Clock {
        lock(&self.books).now(slot)
    }

    pub(super) fn order(&self, slot: u32, clock: &Clock) {
        lock(&self.books).order(slot, clock);
    }

    pub(super) fn name_kernel(&self, name: &str) -> (u32, Arc<str>) {
        let mut books = lock(&self.books);
        let number = books.number_of(name);
        (number, books.name(number).unwrap_or_else(|| name.into()))
    }

    pub(super) fn kernel_name(&self, number: u32) -> Option<Arc<str>> {
        lock(&self.books).name(number)
    }

    /// The host has seen that what `clock` covers is over.
    pub(super) fn learn(&self, clock: &Clock) {
        let due = lock(&self.books).learn(clock);
        due.into_iter().for_each(look_again);
    }

    /// Sums what the host might change while the operation is under way.
    pub(super) fn watch(&self, operation: &mut Operation) {
        for used in &mut operation.uses {
            let is_due = used.is_exposed && !used.direction.writes() && !used.range.is_empty();
            if is_due && lock(&self.books).is_at_rest(&used.tracked, &used.range) {
                used.sum = host::sum(used.tracked.memory(), &used.range);
            }
        }
    }

    /// Gives an operation its place in the order of its stream, and reports what is suspicious about it.
    ///
    /// # Errors
    /// The first finding, where such are refused; the operation is then forgotten.
    pub(super) fn track(&self, slot: u32, operation: &Operation) -> Result<()> {
        let drafts: Vec<Draft> = {
            let mut books = lock(&self.books);
            let problems = books.enter(slot, operation, self.is_strict);
            let draft = |(index, problem): (usize, Problem)| {
                let used = &operation.uses[index];
                match problem {
                    Problem::Race(conflict) => {
                        let earlier = conflict.earlier;
                        let other = books.stream_number(earlier.point.slot);
                        let own = books.stream_number(slot);
                        let context = context(operation);
                        let now = deed_text(&books, used.deed);
                        let before = deed_text(&books, earlier.deed);
                        let uses = if used.direction.writes() { "writes" } else { "reads" };
                        let used_then = if conflict.earlier_writes { "wrote" } else { "read" };
                        Draft {
                            kind: FindingKind::Race,
                            key: format!("{now} {before}"),
                            object: used.tracked.object(),
                            message: format!(
                                "{now} on stream {own}{context} {uses} {}, which {before} on stream {other} {used_then} \
                                 and may not have finished; nothing orders the two",
                                bytes_text(&conflict.bytes)
                            ),
                            origin: Some(used.tracked.origin().clone()),
                            remedy: format!(
                                "record an event on stream {other} behind that and let stream {own} wait for it, or \
                                 wait for it on the host"
                            ),
                        }
                    }
                    Problem::Unwritten(bytes) => {
                        let now = deed_text(&books, used.deed);
                        let (own, context) = (books.stream_number(slot), context(operation));
                        Draft {
                            kind: FindingKind::UnwrittenRead,
                            key: now.clone(),
                            object: used.tracked.object(),
                            message: format!(
                                "{now} on stream {own}{context} reads {}, which nothing has written",
                                bytes_text(&bytes)
                            ),
                            origin: Some(used.tracked.origin().clone()),
                            remedy: "write or fill them first, or give the kernel's signature Access::Write where it \
                                     does not look at what was there; fresh memory holds stale data"
                                .to_owned(),
                        }
                    }
                }
            };
            problems.into_iter().map(draft).collect()
        };
        self.suspect(operation);
        let mut refusal = None;
        for draft in drafts {
            let error = self.refuse(draft);
            refusal.get_or_insert(error);
        }
        refusal.filter(|_| self.is_strict).map_or(Ok(()), Err)
    }

    /// Looks at the zones of buffers that kernels have written since the last look, or of all live ones.
    pub(super) fn inspect_suspects(&self) {
        let tracked = lock(&self.suspects).take();
        let due: Vec<_> = tracked.iter().filter_map(|tracked| Some((tracked, tracked.suspect()?))).collect();
        let zones: Vec<_> = due.iter().map(|(_, (memory, suspect))| (*memory, suspect.clone())).collect();
        for ((tracked, _), is_broken) in due.iter().zip(self.inspect(&zones)) {
            tracked.inspected(is_broken);
        }
    }

    /// Reports every live object.
    pub(super) fn report_leaks(&self) -> usize {
        let living = lock(&self.living).all();
        let count = living.len();
        leaks(living).into_iter().for_each(|draft| self.reporter.report(draft));
        count
    }

    /// The last handle of the device is gone.
    pub(super) fn close(&self) {
        self.exhume();
        self.inspect_suspects();
        self.is_closed.store(true, Ordering::Relaxed);
        self.zones.release_spares();
        let rest = match lock(&self.living).count() {
            0 => String::new(),
            1 => "; 1 object outlives the device".to_owned(),
            count => format!("; {count} objects outlive the device"),
        };
        self.reporter.summary(self.calls.load(Ordering::Relaxed), &rest);
    }

    /// The process ends.
    pub(super) fn end(&self) {
        if self.is_closed() {
            self.report_leaks();
        } else {
            self.reporter.summary(self.calls.load(Ordering::Relaxed), "; still open at exit");
        }
    }

    /// Remembers which zones to look at.
    fn suspect(&self, operation: &Operation) {
        for used in operation.uses.iter().filter(|used| used.direction.writes()) {
            if let Deed::Launch { kernel, .. } = used.deed
                && used.tracked.given_to(kernel)
            {
                lock(&self.suspects).add(&used.tracked);
            }
        }
    }
}

/// Compares what the host may have changed with what it was.
fn look_again(watch: Watch) {
    let Watch { tracked, range, sum, deed, .. } = watch;
    let Some(tracked) = tracked.upgrade() else { return };
    if host::sum(tracked.memory(), &range).is_none_or(|now| now == sum) {
        return;
    }
    let state = tracked.state();
    let deed = deed_text(&lock(&state.books), deed);
    state.reporter.report(Draft {
            kind: FindingKind::HostMemoryChanged,
            key: deed.clone(),
            object: tracked.object(),
            message: format!(
                "{} changed through the host's address while {deed} was under way, which may have read old bytes, new \
                 ones or both",
                bytes_text(&range)
            ),
            origin: Some(tracked.origin().clone()),
            remedy: "wait for an event behind that work, or synchronize its stream, before changing the memory"
                .to_owned(),
    });
}

impl Use {
    pub(super) fn new(
        tracked: &Arc<Tracked>,
        slice: &halite_hal::BufferSlice,
        direction: halite_hal::Access,
        deed: Deed,
    ) -> Self {
        let is_exposed = slice.buffer().is_exposed();
        Self { tracked: tracked.clone(), range: slice.range(), direction, deed, is_exposed, sum: None }
    }
}

fn context(operation: &Operation) -> String {
    let text = |(list, command)| format!(" (command {command} of CommandList#{list})");
    operation.context.map(text).unwrap_or_default()
}

fn deed_text(books: &Books, deed: Deed) -> String {
    match deed {
        Deed::Write => "the write from the host".to_owned(),
        Deed::Fill => "the fill".to_owned(),
        Deed::CopyFrom => "the copy out of it".to_owned(),
        Deed::CopyTo => "the copy into it".to_owned(),
        Deed::HostRead => "the read by the host".to_owned(),
        Deed::Launch { kernel, arg } => {
            let name = books.name(kernel);
            format!("argument {arg} of the launch of '{}'", name.as_deref().unwrap_or("?"))
        }
    }
}

fn bytes_text(range: &Range<u64>) -> String {
    format!("bytes {} to {}", range.start, range.end.saturating_sub(1))
}
