//! What programs say about the work that they enqueue, for layers that watch it: names, shapes, spans of host time,
//! fallbacks, the state of a pool.
//!
//! 1. A layer [`listen`]s for one opening of a device.
//! 2. Whoever enqueues work names it: [`scope`] for commands that the thread enqueues or records from then on, [`span`]
//!    for what the thread itself does, [`note`] for single facts.
//! 3. A layer asks for the [`current`] label when a command passes it. A [`CommandListBuilder`](crate::CommandListBuilder)
//!    takes the label of each command that it records, and [`CommandList::label`](crate::CommandList::label) gives it
//!    back at every replay.
//!
//! A library above the layer says by [`call`] what belongs to one call of its user, so that a layer which asks where in the
//! program something was done need walk the stack once.
//!
//! While nobody listens, for any device of the process, each call is one relaxed load, and labels are not even made.
//! Annotations order nothing and change nothing that is computed.

use crate::pool::PoolStats;
use crate::{Device, DeviceId};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// A name for work, with details as text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Label {
    /// What it is: `dot_general+bias+relu`.
    pub name: String,
    /// Names and values beside it: `inputs`, `f32[32,128] f32[128,10]`.
    pub details: Vec<(&'static str, String)>,
}

impl Label {
    /// A name without details.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), details: Vec::new() }
    }

    /// The same with one more detail.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.details.push((key, value.into()));
        self
    }
}

/// Something that is said about a device.
#[derive(Debug)]
#[non_exhaustive]
pub enum Note<'a> {
    /// What the calling thread did from `begin` to `end`. Spans of one thread nest.
    Span {
        /// Its name: `evaluate`, `plan`.
        label: &'a Label,
        /// When it began.
        begin: Instant,
        /// When it ended.
        end: Instant,
    },
    /// Another device runs an operation, since this one has no kernel for it.
    Fallback {
        /// The operation.
        op: &'a str,
        /// Why.
        reason: &'a str,
        /// The device that runs it.
        target: &'a DeviceId,
    },
    /// What a pool over the device holds now.
    Pool(&'a PoolStats),
}

/// Takes the notes about one device.
pub trait Listener: Send + Sync {
    /// Takes one, on the thread that makes it, several at once if several do. May neither block for work of the device
    /// nor make notes itself.
    fn note(&self, note: &Note<'_>);
}

/// The end of listening, when it is dropped.
#[must_use = "listening ends when this is dropped"]
pub struct Listening(u64);

struct Entry {
    id: u64,
    device: DeviceId,
    listener: Arc<dyn Listener>,
}

/// How many listen. Only a hint, so relaxed: whoever wants to hear of a call subscribed before it.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
static ENTRIES: RwLock<Vec<Entry>> = RwLock::new(Vec::new());

thread_local! {
    static LABELS: RefCell<Vec<Arc<Label>>> = const { RefCell::new(Vec::new()) };
    /// Calls that are going on, one inside of the other, and the number of the outermost.
    static CALLS: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
}

/// Whether anybody listens, for any device. One relaxed load.
pub fn is_listening() -> bool {
    LISTENERS.load(Ordering::Relaxed) > 0
}

/// Passes the notes about `device`, an opening of one, to `listener` until the result is dropped.
pub fn listen(device: &DeviceId, listener: Arc<dyn Listener>) -> Listening {
    let id = crate::buffer::fresh_id();
    let entry = Entry { id, device: device.clone(), listener };
    ENTRIES.write().unwrap_or_else(PoisonError::into_inner).push(entry);
    LISTENERS.fetch_add(1, Ordering::Relaxed);
    Listening(id)
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::Relaxed);
        let mut entries = ENTRIES.write().unwrap_or_else(PoisonError::into_inner);
        let ended =
            entries.iter().position(|entry| entry.id == self.0).map(|index| entries.swap_remove(index));
        drop(entries);
        // With no lock held: the listener may hold anything.
        drop(ended);
    }
}

/// Says something about `device`; `make` is called only if somebody listens.
pub fn note<'a>(device: &DeviceId, make: impl FnOnce() -> Note<'a>) {
    if is_listening() {
        deliver(device, &make());
    }
}

#[cold]
fn deliver(device: &DeviceId, note: &Note<'_>) {
    let entries = ENTRIES.read().unwrap_or_else(PoisonError::into_inner);
    for entry in entries.iter().filter(|entry| entry.device.is_same_opening(device)) {
        entry.listener.note(note);
    }
}

/// What the calling thread does from now until the result is dropped; `make` is called only if somebody listens.
#[must_use = "the span ends when this is dropped"]
pub fn span<'a>(device: &'a Device, make: impl FnOnce() -> Label) -> Span<'a> {
    Span(is_listening().then(|| OpenSpan { device, label: make(), begin: Instant::now() }))
}

/// A span of host time that is going on; noted when it is dropped.
pub struct Span<'a>(Option<OpenSpan<'a>>);

struct OpenSpan<'a> {
    device: &'a Device,
    label: Label,
    begin: Instant,
}

impl Span<'_> {
    /// Adds what is only known later; `value` is called only if somebody listens.
    pub fn detail(&mut self, key: &'static str, value: impl FnOnce() -> String) {
        if let Some(open) = &mut self.0 {
            open.label.details.push((key, value()));
        }
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if let Some(OpenSpan { device, label, begin }) = &self.0 {
            deliver(device.id(), &Note::Span { label, begin: *begin, end: Instant::now() });
        }
    }
}

/// Labels what the calling thread enqueues and records from now until the result is dropped; `make` is called only if
/// somebody listens. Of several, the innermost holds.
#[must_use = "the label holds until this is dropped"]
pub fn scope(make: impl FnOnce() -> Label) -> Scope {
    let is_pushed = is_listening();
    if is_pushed {
        let label = Arc::new(make());
        LABELS.with_borrow_mut(|labels| labels.push(label));
    }
    Scope { is_pushed, on_this_thread: PhantomData }
}

/// A label that holds on the thread that made it.
pub struct Scope {
    is_pushed: bool,
    on_this_thread: PhantomData<*const ()>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        if self.is_pushed {
            // A thread that ends has no labels any more.
            let _ = LABELS.try_with(|labels| labels.borrow_mut().pop());
        }
    }
}

/// The label that holds on the calling thread; none while nobody listens.
pub fn current() -> Option<Arc<Label>> {
    if !is_listening() {
        return None;
    }
    LABELS.with_borrow(|labels| labels.last().cloned())
}

/// Marks what the calling thread does from now until the result is dropped as parts of one call that the program made: of
/// calls inside of one another, the outermost is the program's. Costs two accesses of the thread's own memory.
#[must_use = "the call ends when this is dropped"]
pub fn call() -> Call {
    let (depth, number) = CALLS.get();
    CALLS.set((depth + 1, if depth == 0 { number + 1 } else { number }));
    Call(PhantomData)
}

/// A call that is going on, on the thread that made it.
pub struct Call(PhantomData<*const ()>);

impl Drop for Call {
    fn drop(&mut self) {
        // A thread that ends makes no calls any more.
        let _ = CALLS.try_with(|calls| calls.set((calls.get().0.saturating_sub(1), calls.get().1)));
    }
}

/// The number of the call that the calling thread is in, which no other call of the thread has had; `None` outside of any.
pub fn current_call() -> Option<u64> {
    let (depth, number) = CALLS.try_with(Cell::get).ok()?;
    (depth > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::null::{NullBackend, NullConfig};
    use crate::{CommandListBuilder, Registry};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Listener for Heard {
        fn note(&self, note: &Note<'_>) {
            let text = match note {
                Note::Span { label, begin, end } => {
                    assert!(end >= begin);
                    format!("{} {:?}", label.name, label.details)
                }
                other => format!("{other:?}"),
            };
            self.0.lock().unwrap().push(text);
        }
    }

    fn device() -> Device {
        let mut registry = Registry::new();
        registry.register(Arc::new(NullBackend::new(NullConfig::default()))).unwrap();
        registry.open("null").unwrap()
    }

    #[test]
    fn parts_of_a_call_have_its_number_and_the_next_call_has_another() {
        assert_eq!(current_call(), None);
        let outer = call();
        let number = current_call().unwrap();
        let inner = call();
        assert_eq!(current_call(), Some(number));
        assert_eq!(std::thread::spawn(current_call).join().unwrap(), None);
        drop(inner);
        assert_eq!(current_call(), Some(number));
        drop(outer);
        assert_eq!(current_call(), None);
        let _next = call();
        assert_ne!(current_call(), Some(number));
    }

    // One test, since whether anybody listens is known to the whole process.
    #[test]
    fn notes_reach_the_listeners_of_their_opening_alone_and_cost_nothing_without() {
        let (own, other) = (device(), device());
        assert!(!is_listening());
        note(own.id(), || unreachable!("nobody listens"));
        let nothing = span(&own, || unreachable!("nobody listens"));
        let unlabelled = scope(|| unreachable!("nobody listens"));
        assert!(current().is_none());

        let heard = Arc::new(Heard::default());
        let listening = listen(own.id(), heard.clone());
        assert!(is_listening());
        // What began before is not noted.
        drop((nothing, unlabelled));
        assert!(current().is_none() && heard.0.lock().unwrap().is_empty());

        let stats = PoolStats::default();
        note(other.id(), || Note::Pool(&stats));
        let mut evaluation = span(&own, || Label::new("evaluate").with("a", "b"));
        evaluation.detail("launches", || "3".into());
        drop(evaluation);
        assert_eq!(*heard.0.lock().unwrap(), [r#"evaluate [("a", "b"), ("launches", "3")]"#]);

        let mut commands = CommandListBuilder::new();
        let copy = || {
            let buffer = own.allocate(8, crate::MemoryKind::Device).unwrap();
            let half = |offset| crate::RecordedRange::Fixed(buffer.slice(offset, 4).unwrap());
            crate::RecordedCommand::Copy { dst: half(0), src: half(4) }
        };
        commands.push(copy());
        {
            let _outer = scope(|| Label::new("outer"));
            let inner = scope(|| Label::new("inner"));
            assert_eq!(current().unwrap().name, "inner");
            commands.push(copy());
            drop(inner);
            commands.push(copy());
            assert!(std::thread::spawn(current).join().unwrap().is_none(), "labels are the thread's own");
        }
        commands.push(copy());
        let list = own.finish(commands).unwrap();
        let names: Vec<_> = (0..5).map(|i| list.label(i).map(|label| label.name.as_str())).collect();
        assert_eq!(names, [None, Some("inner"), Some("outer"), None, None]);

        drop(listening);
        assert!(!is_listening());
        note(own.id(), || unreachable!("nobody listens"));
        assert_eq!(heard.0.lock().unwrap().len(), 1);
        assert_eq!(Arc::strong_count(&heard), 1);
    }
}
