//! What the layer attaches to buffers, kernels and events, and the list of those that live.

use super::clock::Clock;
use super::finding::FindingKind;
use super::lock;
use super::place::Place;
use super::report::Draft;
use super::shadow::Shadow;
use super::state::State;
use super::zone::{Grave, Suspect};
use halite_hal::{Buffer, ErrorKind, Event, Result, driver};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// What the layer keeps of a buffer.
pub(super) struct Tracked {
    state: Arc<State>,
    /// The inner device's buffer, with the red zone.
    memory: Buffer,
    /// Length without the zone.
    len: u64,
    has_zone: bool,
    /// Its zone has been found broken, which is told once.
    is_broken: AtomicBool,
    /// Number of the kernel that was last given it to write, plus 1.
    kernel: AtomicU32,
    shadow: Mutex<Shadow>,
    life: Life,
}

/// The attachment of a [`Buffer`].
pub(super) struct BufferMark(pub(super) Arc<Tracked>);

/// The attachment of a [`halite_hal::Kernel`].
pub(super) struct KernelMark {
    state: Arc<State>,
    /// Number of its name.
    pub(super) number: u32,
    _life: Life,
}

/// An event with what was known at its point.
pub(super) struct WatchedEvent {
    inner: Box<dyn driver::Event>,
    state: Arc<State>,
    pub(super) clock: Clock,
    /// The host has learned of it.
    is_known: AtomicBool,
    _life: Life,
}

/// An entry in the list of live objects, which goes with the object.
pub(super) struct Life {
    state: Weak<State>,
    number: u64,
    pub(super) origin: Arc<Place>,
}

/// Live objects of a device by number, with where they were made.
#[derive(Default)]
pub(super) struct Living {
    last: u64,
    objects: BTreeMap<u64, (Object, Arc<Place>)>,
}

/// What lives.
#[derive(Clone)]
pub(super) enum Object {
    Buffer(u64, u64),
    Kernel(Arc<str>),
    Stream(u64),
    Event,
}

impl Tracked {
    pub(super) fn new(state: &Arc<State>, memory: Buffer, len: u64, has_zone: bool) -> Arc<Self> {
        Arc::new(Self {
            life: Life::new(state, Object::Buffer(memory.id(), len)),
            state: state.clone(),
            memory,
            len,
            has_zone,
            is_broken: AtomicBool::new(false),
            kernel: AtomicU32::new(0),
            shadow: Mutex::new(Shadow::new(len)),
        })
    }

    pub(super) fn shadow(&self) -> MutexGuard<'_, Shadow> {
        lock(&self.shadow)
    }

    pub(super) fn state(&self) -> &Arc<State> {
        &self.state
    }

    pub(super) fn memory(&self) -> &Buffer {
        &self.memory
    }

    pub(super) fn origin(&self) -> &Arc<Place> {
        &self.life.origin
    }

    pub(super) fn belongs_to(&self, state: &Arc<State>) -> bool {
        Arc::ptr_eq(&self.state, state)
    }

    pub(super) fn object(&self) -> String {
        Object::Buffer(self.memory.id(), self.len).to_string()
    }

    /// Notes a kernel that may write it; whether it is the first since the zone was looked at.
    pub(super) fn given_to(&self, kernel: u32) -> bool {
        self.has_zone && self.kernel.swap(kernel + 1, Ordering::Relaxed) == 0
    }

    /// What to look at, if there is a zone that is not known to be broken.
    pub(super) fn suspect(&self) -> Option<(&Buffer, Suspect)> {
        let is_due = self.has_zone && !self.is_broken.load(Ordering::Relaxed);
        is_due.then(|| (&self.memory, self.as_suspect()))
    }

    /// The zone has been looked at.
    pub(super) fn inspected(&self, is_broken: bool) {
        self.kernel.store(0, Ordering::Relaxed);
        self.is_broken.fetch_or(is_broken, Ordering::Relaxed);
    }

    fn as_suspect(&self) -> Suspect {
        let kernel = self.kernel.load(Ordering::Relaxed).checked_sub(1);
        Suspect {
            id: self.memory.id(),
            len: self.len,
            origin: self.life.origin.clone(),
            kernel: kernel.and_then(|number| self.state.kernel_name(number)),
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if !self.has_zone {
            return;
        }
        let suspect = (!self.is_broken.load(Ordering::Relaxed)).then(|| self.as_suspect());
        self.state.bury(Grave { memory: self.memory.clone(), suspect });
    }
}

/// Buffers whose zones are to be looked at, without keeping any alive.
#[derive(Default)]
pub(super) struct Suspects {
    buffers: Vec<Weak<Tracked>>,
    /// At this length the dead ones are sorted out: programs that only wait for events never look.
    sorted_at: usize,
}

impl Suspects {
    /// Adds a buffer that is not among them.
    pub(super) fn add(&mut self, tracked: &Arc<Tracked>) {
        if self.buffers.len() >= self.sorted_at {
            self.buffers.retain(|buffer| buffer.strong_count() > 0);
            // As many are added before the next time as are walked over then.
            self.sorted_at = (2 * self.buffers.len()).max(64);
        }
        self.buffers.push(Arc::downgrade(tracked));
    }

    /// Takes out those that are alive.
    pub(super) fn take(&mut self) -> Vec<Arc<Tracked>> {
        self.buffers.drain(..).filter_map(|buffer| buffer.upgrade()).collect()
    }
}

impl KernelMark {
    pub(super) fn new(state: &Arc<State>, name: &str) -> Self {
        let (number, shared) = state.name_kernel(name);
        Self { state: state.clone(), number, _life: Life::new(state, Object::Kernel(shared)) }
    }

    pub(super) fn belongs_to(&self, state: &Arc<State>) -> bool {
        Arc::ptr_eq(&self.state, state)
    }
}

impl WatchedEvent {
    pub(super) fn new(state: &Arc<State>, inner: Box<dyn driver::Event>, clock: Clock) -> Self {
        let life = Life::new(state, Object::Event);
        Self { inner, state: state.clone(), clock, is_known: AtomicBool::new(false), _life: life }
    }

    pub(super) fn belongs_to(&self, state: &Arc<State>) -> bool {
        Arc::ptr_eq(&self.state, state)
    }

    /// Lets the host learn from what the event answered.
    fn learn<T>(&self, result: Result<T>, is_over: impl FnOnce(&T) -> bool) -> Result<T> {
        let over = match &result {
            Ok(answer) => is_over(answer),
            Err(error) => tells_the_end(error.kind()),
        };
        if over && !self.is_known.swap(true, Ordering::Relaxed) {
            self.state.learn(&self.clock);
        }
        self.state.pass(result)
    }
}

/// Whether an error of a wait means that the work is over, and not that the wait was.
pub(super) fn tells_the_end(kind: &ErrorKind) -> bool {
    !matches!(kind, ErrorKind::Timeout { .. } | ErrorKind::InvalidArgument)
}

impl driver::Event for WatchedEvent {
    fn is_done(&self) -> Result<bool> {
        self.learn(self.inner.is_done(), |done| *done)
    }

    fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.learn(self.inner.wait(timeout), |()| true)
    }

    fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        self.state.pass(self.inner.elapsed_since(earlier))
    }

    fn inner(&self) -> Option<&dyn driver::Event> {
        Some(self.inner.as_ref())
    }
}

impl Life {
    pub(super) fn new(state: &Arc<State>, object: Object) -> Self {
        let origin = Place::here();
        let number = lock(&state.living).add(object, origin.clone());
        Self { state: Arc::downgrade(state), number, origin }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            let gone = lock(&state.living).objects.remove(&self.number);
            drop(gone);
        }
    }
}

impl Living {
    fn add(&mut self, object: Object, origin: Arc<Place>) -> u64 {
        self.last += 1;
        self.objects.insert(self.last, (object, origin));
        self.last
    }

    pub(super) fn count(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn all(&self) -> Vec<(Object, Arc<Place>)> {
        self.objects.values().cloned().collect()
    }
}

/// Objects of one noun that one place made.
struct Group {
    objects: Vec<Object>,
    origin: Arc<Place>,
}

/// A report for each place that made some of the objects.
pub(super) fn leaks(objects: Vec<(Object, Arc<Place>)>) -> Vec<Draft> {
    let mut places: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for (object, origin) in objects {
        let key = (object.noun(), origin.to_string());
        places.entry(key).or_insert_with(|| Group { objects: Vec::new(), origin }).objects.push(object);
    }
    places.into_iter().map(|((noun, place), group)| leak(noun, &place, group)).collect()
}

/// The report for objects of one noun and one place.
fn leak(noun: &str, place: &str, group: Group) -> Draft {
    let Group { objects, origin } = group;
    let bytes: u64 = objects.iter().map(Object::bytes).sum();
    let what = match objects.len() {
        1 => format!("{} {noun} is still alive", if noun == "event" { "an" } else { "a" }),
        n => format!("{n} {noun}s of one place are still alive"),
    };
    Draft {
        kind: FindingKind::Leak,
        key: format!("{noun} {place}"),
        object: objects.first().map(ToString::to_string).unwrap_or_default(),
        message: if bytes > 0 { format!("{what}, with {bytes} bytes") } else { what },
        origin: Some(origin),
        remedy: "drop the last handle; look for clones in caches, in static variables and in cycles of Arc"
            .to_owned(),
    }
}

impl Object {
    fn noun(&self) -> &'static str {
        match self {
            Self::Buffer(..) => "buffer",
            Self::Kernel(_) => "kernel",
            Self::Stream(_) => "stream",
            Self::Event => "event",
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Buffer(_, bytes) => *bytes,
            _ => 0,
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Buffer(id, len) => write!(f, "Buffer#{id} ({len} bytes)"),
            Self::Kernel(name) => write!(f, "kernel '{name}'"),
            Self::Stream(number) => write!(f, "stream {number}"),
            Self::Event => f.write_str("an event"),
        }
    }
}
