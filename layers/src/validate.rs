//! The layer `validate`: finds misuse of a device, says what is wrong, where, and how to mend it.
//!
//! `HALITE_LAYERS=validate` puts it around every device; findings go to the standard error stream, each once per place,
//! and a line with their number when a device closes. `HALITE_LAYERS=validate:strict` also refuses what is merely
//! suspicious. A program that wants findings as values registers a layer made by [`Validate::collecting`] or
//! [`Validate::on_finding`].
//!
//! # What is found
//!
//! | finding | when | what the call does |
//! | --- | --- | --- |
//! | foreign handle, event not recorded | a raw driver call gets an object that this opening did not make | refused |
//! | out of range, overlap, misaligned | a raw driver call copies, fills or binds ranges that no handle lets through | refused |
//! | signature, limit | a raw driver call launches what fits neither signature nor device | refused |
//! | call after a loss | work for a device whose loss the caller has been told of | answers with the loss |
//! | unwritten read | a launch reads, or the host copies back, bytes that nothing wrote | reported |
//! | race | two streams use the same bytes, one writing, and neither events nor the host order them | reported |
//! | red zone | the 64 bytes behind the end of a buffer changed | reported |
//! | host memory changed | bytes changed through [`Buffer::host_pointer`] while work that reads them was under way | reported |
//! | leak | an object outlives its closed device to the end of the process, or [`Validate::report_leaks`] is called | reported |
//!
//! *Refused* means `InvalidArgument` with the finding's text; the driver never sees the call. The handles refuse most of
//! these themselves, before any layer is asked.
//!
//! Some misuse cannot be written in safe Rust, and so is not looked for: handles are counted, so none is stale or freed
//! twice; [`Stream::record`] makes the event, so none is waited for before it was recorded; an asynchronous write owns
//! its bytes, which are immutable ([`HostBytes`]).
//!
//! # How it knows
//!
//! **Order.** Every stream counts its operations, and vector clocks say what each comes after: earlier ones of its
//! stream, what events it waited for, and what the host had seen to be over when it was enqueued. The host is one
//! participant: that work is over is a fact, whichever thread saw it. So a race is only missed where timing hid it, and
//! never reported where events, `synchronize` or a blocking read stand between. A program in which the host learns of
//! the end by other means (a native kernel that sends a message) has to synchronize as well.
//!
//! **Contents.** For each buffer the layer knows which bytes were written. A launch counts as writing the whole range of
//! an argument that its signature lets it write. A copy passes on what it copies, so copying unwritten bytes is no
//! finding, and using the copy is. Memory whose [`Buffer::host_pointer`] was asked for counts as written.
//!
//! **Ends.** Allocations are 64 bytes longer than asked, and the handle does not show the rest. Zones are looked at when
//! a buffer is freed, when a stream is synchronized or read from, and by [`Validate::check_red_zones`]. Only ends have
//! zones: a buffer begins where the driver's allocation does. [`Pool`]s give each allocation a buffer of its own, so
//! every tensor has a zone; the layer itself reuses memory of the same length, once its zone was found intact. A buffer
//! that takes the last free bytes of a device has none, and neither has any on a device that does not keep what is
//! written, such as the `null` one.
//!
//! **Host memory.** Sums of ranges that are read by copies and launches (not by replays) are compared when the host
//! learns that the work is over, if the host's address was asked for and no enqueued work may write them.
//!
//! [`Buffer::host_pointer`]: halite_hal::Buffer::host_pointer
//! [`HostBytes`]: halite_hal::HostBytes
//! [`Pool`]: halite_hal::Pool
//! [`Stream::record`]: halite_hal::Stream::record

mod books;
mod clock;
mod device;
mod finding;
mod host;
mod object;
mod place;
mod report;
mod shadow;
mod stack;
mod state;
mod stream;
mod zone;

pub use finding::{Finding, FindingKind};

use books::Books;
use device::ValidateDevice;
use halite_hal::{Device, Error, Layer, Result};
use report::Sink;
use state::State;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

/// The layer `validate`. Clones share their findings' destination and the devices that they are around.
#[derive(Clone)]
pub struct Validate {
    is_strict: bool,
    sink: Sink,
    books: Arc<Mutex<Books>>,
    devices: Arc<Mutex<Vec<Weak<State>>>>,
}

/// The findings of a layer made by [`Validate::collecting`].
#[derive(Debug, Clone, Default)]
pub struct Findings(Arc<Mutex<Vec<Finding>>>);

/// States whose findings go to the standard error stream, for a last word when the process ends.
static OPENED: Mutex<Vec<Weak<State>>> = Mutex::new(Vec::new());

impl Validate {
    /// A layer that writes findings to the standard error stream, and a summary when a device closes.
    pub fn new() -> Self {
        Self { is_strict: false, sink: Sink::Stderr, books: Arc::default(), devices: Arc::default() }
    }

    /// A layer that passes each finding to `call`, on the thread that made the wrong call or dropped the object.
    ///
    /// Locks of the layer are not held meanwhile, but those of the caller may be.
    #[must_use]
    pub fn on_finding(call: impl Fn(&Finding) + Send + Sync + 'static) -> Self {
        Self { sink: Sink::Call(Arc::new(call)), ..Self::new() }
    }

    /// A layer that collects findings.
    #[must_use]
    pub fn collecting() -> (Self, Findings) {
        let findings = Findings::default();
        let all = findings.0.clone();
        (Self::on_finding(move |finding| lock(&all).push(finding.clone())), findings)
    }

    /// The same layer, refusing also what is merely suspicious: races and reads of bytes that nothing wrote.
    #[must_use]
    pub fn strict(self) -> Self {
        Self { is_strict: true, ..self }
    }

    /// Looks at the red zones of all buffers that kernels have written since the last look, and of those given back.
    ///
    /// May wait for small copies of the layer's own, not for the program's work.
    pub fn check_red_zones(&self) {
        for state in self.open_devices() {
            state.exhume();
            state.inspect_suspects();
        }
    }

    /// Reports every buffer, stream, event and kernel that is alive on the devices of this layer, and says how many
    /// there are. For a moment when all should be gone.
    pub fn report_leaks(&self) -> usize {
        self.open_devices().iter().map(|state| state.report_leaks()).sum()
    }

    fn open_devices(&self) -> Vec<Arc<State>> {
        let mut devices = lock(&self.devices);
        devices.retain(|state| state.strong_count() > 0);
        devices.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Default for Validate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Validate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validate").field("is_strict", &self.is_strict).finish_non_exhaustive()
    }
}

impl Findings {
    /// The findings so far, in the order in which they were made; from then on there are none again.
    pub fn take(&self) -> Vec<Finding> {
        std::mem::take(&mut *lock(&self.0))
    }
}

impl Layer for Validate {
    fn name(&self) -> &str {
        "validate"
    }

    fn wrap(&self, inner: Device) -> Result<Device> {
        let state = Arc::new(State::new(inner, self.is_strict, self.sink.clone(), self.books.clone()));
        if !state.probe() {
            // Around itself the layer would take its own attachments for foreign ones.
            return Ok(state.inner.clone());
        }
        let weak = Arc::downgrade(&state);
        let remember = |devices: &Mutex<Vec<Weak<State>>>| {
            let mut devices = lock(devices);
            devices.retain(|state| state.strong_count() > 0);
            devices.push(weak.clone());
        };
        remember(&self.devices);
        if matches!(self.sink, Sink::Stderr) {
            static HOOK: Once = Once::new();
            HOOK.call_once(|| host::at_exit(last_word));
            remember(&OPENED);
        }
        Ok(Device::new(Arc::new(ValidateDevice(state))))
    }

    fn configure(&self, settings: &str) -> Result<Arc<dyn Layer>> {
        match settings {
            "strict" => Ok(Arc::new(self.clone().strict())),
            other => Err(Error::invalid(format!(
                "the layer 'validate' knows the setting 'strict', got '{other}'; write validate or validate:strict"
            ))),
        }
    }
}

/// Says what is left when the process ends.
extern "C" fn last_word() {
    // Nobody could catch a panic here, and at this point parts of the standard library may be gone.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let states: Vec<_> = lock(&OPENED).iter().filter_map(Weak::upgrade).collect();
        states.iter().for_each(|state| state.end());
        // Dropping the last handle might ask a driver that is being torn down.
        std::mem::forget(states);
    }));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder leaves consistent state behind, also when it unwinds.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
