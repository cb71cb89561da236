//! In-order queues: what work in flight holds, and what a failure does.
//!
//! Every command is counted. What it uses is held under its number, and given back when an event or a synchronisation
//! says that the plugin is past it. Events of the caller serve as such marks; in between, every [`MARK_EVERY`] commands,
//! the stream records one of its own.

use crate::api::Progress;
use crate::buffer::{memory, place};
use crate::device::DeviceShared;
use crate::event::{self, EventShared, NpuEvent};
use crate::kernel;
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::plugin::{NO_TIMEOUT, StreamHandle};
use halite_hal::{Arg, Buffer, BufferSlice, Error, ErrorKind, Event, Kernel, Result};
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Commands after which a stream without recorded events records one, to give back what finished ones held.
const MARK_EVERY: u64 = 64;

/// What a command in flight uses.
#[expect(dead_code, reason = "held, not read")]
pub(crate) enum Held {
    Buffer(Buffer),
    Kernel(Kernel),
    Bytes(HostBytes),
    Target(HostTarget),
    Staging(Arc<Staging>),
    Event(Arc<EventShared>),
}

/// A plugin's stream; destroyed when nothing runs on it any more.
struct RawStream {
    device: Arc<DeviceShared>,
    handle: StreamHandle,
}

impl Drop for RawStream {
    fn drop(&mut self) {
        self.device.stream_handles.remove(self.handle);
        self.device.library.stream_destroy(self.handle);
    }
}

struct State {
    raw: Arc<RawStream>,
    /// Commands so far.
    sequence: u64,
    /// Resets so far: a failure from before a reset does not poison what came after.
    generation: u64,
    failure: Option<Error>,
    held: VecDeque<(u64, Held)>,
    marks: VecDeque<(u64, Arc<EventShared>)>,
}

/// A stream, shared by the handle and by its events.
pub(crate) struct StreamShared {
    state: Mutex<State>,
    device: Arc<DeviceShared>,
    /// Whose memory copies read too: it is closed after the stream.
    _peer: Option<Arc<DeviceShared>>,
}

/// A stream as the layer sees it. Dropping it lets enqueued work run to its end.
pub(crate) struct NpuStream(pub(crate) Arc<StreamShared>);

impl StreamShared {
    pub(crate) fn create(device: &Arc<DeviceShared>, peer: Option<Arc<DeviceShared>>) -> Result<Arc<Self>> {
        let state = State {
            raw: RawStream::create(device)?,
            sequence: 0,
            generation: 0,
            failure: None,
            held: VecDeque::new(),
            marks: VecDeque::new(),
        };
        Ok(Arc::new(Self { state: Mutex::new(state), device: device.clone(), _peer: peer }))
    }

    /// Whether no work in flight holds anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.reap();
        self.lock().held.is_empty()
    }

    /// Gives back what finished work held. Never waits.
    pub(crate) fn reap(&self) {
        let mut state = self.lock();
        // What a plugin that is stuck in a call may still use stays taken.
        let released = if self.device.is_stuck() { Vec::new() } else { state.reap(&self.device) };
        drop(state);
        // Freed outside of the lock: a plugin's free may take long.
        drop(released);
    }

    /// Notes that all commands up to `sequence` are over, with this outcome, and says how they ended: the first failure
    /// wins, and one of a waited-for event counts here too.
    pub(crate) fn settle(&self, sequence: u64, generation: u64, outcome: Result<()>) -> Result<()> {
        let mut state = self.lock();
        let mut outcome = outcome;
        let released = state.release(sequence);
        for held in &released {
            if let (Held::Event(event), Ok(())) = (held, &outcome) {
                outcome = failure_of(&self.device, event);
            }
        }
        if let Err(error) = &outcome
            && state.generation == generation
        {
            outcome = Err(state.failure.get_or_insert_with(|| error.clone()).clone());
        }
        drop(state);
        drop(released);
        outcome
    }

    pub(crate) fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        let (raw, sequence, generation) = {
            let state = self.lock();
            (state.raw.clone(), state.sequence, state.generation)
        };
        if self.device.is_lost() {
            self.reap();
            return self.device.check();
        }
        let progress = raw.synchronize(timeout);
        let outcome = match self.device.noting_progress(progress) {
            Ok(Progress::Done) => Ok(()),
            Ok(Progress::Failed(error)) => Err(error),
            Ok(Progress::Pending) => {
                return Err(match timeout {
                    Some(after) => {
                        let message = format!("work is not done within {after:?}; it goes on");
                        Error::new(ErrorKind::Timeout { after }, message)
                    }
                    None => self
                        .device
                        .library
                        .breach("ends a stream_synchronize without a limit before the work is over"),
                });
            }
            Err(error) => {
                self.reap();
                return Err(error);
            }
        };
        self.settle(sequence, generation, outcome)?;
        let state = self.lock();
        match &state.failure {
            Some(error) if state.generation == generation => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Enqueues one command: `run` passes it to the plugin, `held` is what it uses.
    fn enqueue(&self, held: Vec<Held>, run: impl FnOnce(StreamHandle) -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        let released = self.open(&mut state)?;
        let result = self.device.noting_loss(run(state.raw.handle));
        // A plugin that breaks a rule of the call may have enqueued the work all the same.
        if result.as_ref().err().is_none_or(|error| matches!(error.kind(), ErrorKind::BadFormat)) {
            state.sequence += 1;
            let sequence = state.sequence;
            state.held.extend(held.into_iter().map(|held| (sequence, held)));
        }
        drop(state);
        drop(released);
        result
    }

    /// Refuses a stream that has failed, and now and then gives back what finished work held.
    fn open(&self, state: &mut State) -> Result<Vec<Held>> {
        self.device.check()?;
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let last = state.held.back().map_or(0, |(number, _)| *number);
        let first = state.held.front().map_or(0, |(number, _)| *number);
        let marked = state.marks.back().map_or(first, |(number, _)| *number);
        let unmarked = last.saturating_sub(marked);
        if unmarked < MARK_EVERY {
            return Ok(Vec::new());
        }
        // Without a mark, what is held waits for the next event or synchronisation; that is no failure.
        let _ = self.mark(state);
        Ok(state.reap(&self.device))
    }

    /// Records an event behind everything so far.
    fn mark(&self, state: &mut State) -> Result<Arc<EventShared>> {
        let event = Arc::new(EventShared::create(&self.device)?);
        self.device.library.event_record(state.raw.handle, event.handle)?;
        state.marks.push_back((state.sequence, event.clone()));
        Ok(event)
    }

    fn record(self: &Arc<Self>) -> Result<NpuEvent> {
        let mut state = self.lock();
        self.device.check()?;
        if let Some(failure) = &state.failure {
            return Ok(NpuEvent::OfFailed(failure.clone()));
        }
        let event = self.device.noting_loss(self.mark(&mut state))?;
        let (sequence, generation) = (state.sequence, state.generation);
        let released = state.reap(&self.device);
        drop(state);
        drop(released);
        Ok(NpuEvent::Recorded { event, stream: Arc::downgrade(self), sequence, generation })
    }

    fn wait(&self, event: &NpuEvent) -> Result<()> {
        let known = match event {
            NpuEvent::OfFailed(failure) => Some(Err(failure.clone())),
            NpuEvent::Recorded { event, .. } => poll(&self.device, event)?,
        };
        match (known, event) {
            (Some(Ok(())), _) => Ok(()),
            (Some(Err(failure)), _) => {
                self.lock().failure.get_or_insert(failure);
                Ok(())
            }
            (None, NpuEvent::Recorded { event, .. }) => self
                .enqueue(vec![Held::Event(event.clone())], |stream| {
                    self.device.library.stream_wait_event(stream, event.handle)
                }),
            (None, NpuEvent::OfFailed(failure)) => Err(failure.clone()),
        }
    }

    fn reset(&self) -> Result<()> {
        // Once the failure is known here, nothing new is enqueued; the second wait is for what came in between.
        let mut result = self.synchronize(None);
        if result.is_err() {
            self.device.check()?;
            result = self.synchronize(None);
        }
        let Err(error) = result else { return Ok(()) };
        self.device.check()?;
        let mut state = self.lock();
        let Some(failure) = state.failure.clone().filter(|_| state.held.is_empty()) else {
            // The plugin did not say that the work is over, so neither can the stream be given back.
            return Err(error);
        };
        if self.device.library.table.stream_reset.is_some() {
            self.device.noting_loss(self.device.library.stream_reset(state.raw.handle))?;
        } else {
            state.raw = self.device.noting_loss(RawStream::create(&self.device))?;
        }
        log::debug!("{}: a stream forgets its failure: {failure}", self.device.info.id);
        state.failure = None;
        state.generation += 1;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out what is held up to and including command `sequence`.
    fn release(&mut self, sequence: u64) -> Vec<Held> {
        while self.marks.front().is_some_and(|(mark, _)| *mark <= sequence) {
            self.marks.pop_front();
        }
        let count = self.held.partition_point(|(number, _)| *number <= sequence);
        self.held.drain(..count).map(|(_, held)| held).collect()
    }

    /// Takes out what is held up to the last mark that is over. After a loss nothing runs any more.
    fn reap(&mut self, device: &Arc<DeviceShared>) -> Vec<Held> {
        if device.is_lost() {
            return self.release(u64::MAX);
        }
        let mut over = None;
        for (mark, event) in &self.marks {
            match event.poll() {
                Ok(Some(Ok(()))) => over = Some(*mark),
                Ok(Some(Err(error))) => {
                    self.failure.get_or_insert(error);
                    over = Some(*mark);
                }
                Ok(None) | Err(_) => break,
            }
        }
        let Some(over) = over else { return Vec::new() };
        let released = self.release(over);
        for held in &released {
            if let Held::Event(event) = held
                && let Err(error) = failure_of(device, event)
            {
                self.failure.get_or_insert(error);
            }
        }
        released
    }
}

/// What is known of an event that streams of `device` wait for.
fn poll(device: &Arc<DeviceShared>, event: &EventShared) -> Result<Option<Result<()>>> {
    let known = event.poll();
    if Arc::ptr_eq(&event.device, device) {
        return known;
    }
    match known {
        Err(error) if matches!(error.kind(), ErrorKind::DeviceLost) => Ok(Some(Err(error))),
        known => known,
    }
    .map(|known| known.map(|outcome| outcome.map_err(driver::failure_of_peer)))
}

/// The failure of an event that work of `device`, which is over, waited for. That a peer is lost by now says nothing of
/// it: the plugin tells how the work ended.
fn failure_of(device: &Arc<DeviceShared>, event: &EventShared) -> Result<()> {
    match event.poll() {
        Ok(Some(Err(error))) if !Arc::ptr_eq(&event.device, device) => match error.kind() {
            ErrorKind::DeviceLost => Ok(()),
            _ => Err(error),
        },
        Ok(Some(outcome)) => outcome,
        Ok(None) | Err(_) => Ok(()),
    }
}

impl RawStream {
    fn create(device: &Arc<DeviceShared>) -> Result<Arc<Self>> {
        let handle = device.library.stream_create(device.handle)?;
        let handle = device.library.fresh(device.stream_handles.add(handle), handle, "stream_create")?;
        Ok(Arc::new(Self { device: device.clone(), handle }))
    }

    /// Waits for everything enqueued. With a limit, it first asks whether there is anything to wait for.
    fn synchronize(self: &Arc<Self>, timeout: Option<Duration>) -> Result<Progress> {
        let ask = |stream: &Self, timeout| {
            stream.device.library.stream_synchronize(stream.handle, timeout_ns(timeout))
        };
        let Some(limit) = timeout else { return ask(self, None) };
        match ask(self, Some(Duration::ZERO))? {
            Progress::Pending if !limit.is_zero() => {
                let own = self.clone();
                self.device.bounded("stream_synchronize", limit, move |timeout| ask(&own, timeout))
            }
            progress => Ok(progress),
        }
    }
}

impl driver::Stream for NpuStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        if dst.len_bytes() == 0 {
            return self.0.open_only();
        }
        let place = place(dst)?;
        let held = vec![Held::Buffer(dst.buffer().clone()), Held::Bytes(src.clone())];
        self.0.enqueue(held, |stream| {
            // SAFETY: the bytes are as long as the range (`driver::Stream`), and held until the work is over.
            unsafe {
                self.0.device.library.stream_write(stream, place, src.as_slice().as_ptr(), dst.len_bytes())
            }
        })
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        if dst.is_empty() {
            return self.0.open_only();
        }
        // Read through memory of our own: a plugin that fails to say whether the copy is over may then still write to it
        // without harm to the caller's.
        let staging = Arc::new(Staging::new(dst.len()));
        let held = Held::Staging(staging.clone());
        self.enqueue_read(src, staging.as_mut_ptr(), held)?;
        let event = self.0.record()?;
        driver::Event::wait(&event, None)?;
        // SAFETY: the copy is over, and it was the only one that used this memory.
        dst.copy_from_slice(unsafe { staging.as_slice() });
        Ok(())
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        if src.len_bytes() == 0 {
            return self.0.open_only();
        }
        let pointer = dst.as_mut_ptr();
        self.enqueue_read(src, pointer, Held::Target(dst))
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        if dst.len_bytes() == 0 {
            return self.0.open_only();
        }
        let (to, from, len) = (place(dst)?, place(src)?, dst.len_bytes());
        let held = vec![Held::Buffer(dst.buffer().clone()), Held::Buffer(src.buffer().clone())];
        let (own, owner) = (&self.0.device, &memory(src)?.device);
        self.0.enqueue(held, |stream| {
            if Arc::ptr_eq(own, owner) {
                own.library.stream_copy(stream, to, from, len)
            } else {
                own.library.stream_copy_peer(stream, to, owner.handle, from, len)
            }
        })
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        if dst.len_bytes() == 0 {
            return self.0.open_only();
        }
        let place = place(dst)?;
        self.0.enqueue(vec![Held::Buffer(dst.buffer().clone())], |stream| {
            self.0.device.library.stream_fill(stream, place, dst.len_bytes(), pattern)
        })
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let buffers = args.iter().filter_map(|arg| match arg {
            Arg::Buffer(slice) => Some(Held::Buffer(slice.buffer().clone())),
            Arg::Scalar(_) => None,
        });
        let held = buffers.chain([Held::Kernel(kernel.clone())]).collect();
        let launch = kernel::prepare_launch(&self.0.device, kernel, grid, args)?;
        self.0.enqueue(held, launch)
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        Ok(Box::new(self.0.record()?))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.0.wait(event.object::<NpuEvent>().ok_or_else(event::foreign)?)
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.0.reset()
    }
}

impl StreamShared {
    /// What a command without work answers: the stream's failure, if there is one.
    fn open_only(&self) -> Result<()> {
        let mut state = self.lock();
        let released = self.open(&mut state);
        drop(state);
        released.map(drop)
    }
}

impl NpuStream {
    fn enqueue_read(&self, src: &BufferSlice, dst: *mut u8, target: Held) -> Result<()> {
        let place = place(src)?;
        let held = vec![Held::Buffer(src.buffer().clone()), target];
        self.0.enqueue(held, |stream| {
            // SAFETY: `target`, which owns the memory at `dst`, is as long as the range and held until the work is over;
            // whoever reads it waits for that.
            unsafe { self.0.device.library.stream_read(stream, dst, place, src.len_bytes()) }
        })
    }
}

impl Drop for NpuStream {
    fn drop(&mut self) {
        if self.0.is_idle() {
            return;
        }
        let shared = self.0.clone();
        let drain = move || {
            // Done or failed, the work is over after this; only a plugin that does not say so leaves something held.
            let _ = shared.synchronize(None);
            if !shared.is_idle() {
                log::warn!(
                    "{}: a dropped stream never finished; its memory stays taken",
                    shared.device.info.id
                );
                std::mem::forget(shared);
            }
        };
        // A drop does not wait for the device, so a thread does. If there is none to be had, what is in flight stays
        // taken: freeing it under the device's hands would be worse.
        let keep = self.0.clone();
        match std::thread::Builder::new().name("halite-npu-drain".into()).spawn(drain) {
            Ok(_) => drop(keep),
            Err(_) => std::mem::forget(keep),
        }
    }
}

/// Memory of the loader that a copy writes to.
pub(crate) struct Staging(UnsafeCell<Box<[u8]>>);
// SAFETY: written by the one copy that holds it, and read only after that copy is over (`as_slice`).
unsafe impl Sync for Staging {}

impl Staging {
    fn new(len: usize) -> Self {
        Self(UnsafeCell::new(vec![0; len].into()))
    }

    fn as_mut_ptr(&self) -> *mut u8 {
        // SAFETY: only the address is taken; exclusive use is the copy's (see `Sync`).
        unsafe { (*self.0.get()).as_mut_ptr() }
    }

    /// # Safety
    /// The copy into this memory is over.
    unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: nobody writes any more, by this function's contract.
        unsafe { &*self.0.get() }
    }
}

/// A time limit in the interface's form.
pub(crate) fn timeout_ns(timeout: Option<Duration>) -> u64 {
    timeout
        .map_or(NO_TIMEOUT, |limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).min(NO_TIMEOUT - 1))
}
