//! The wrapped queue: refused calls, work that fails, is slow, or arrives with other bytes.

use super::event::{FaultEvent, sleep_until};
use super::random::Random;
use super::schedule::{Injection, Schedule};
use super::script::{Action, Call};
use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{
    Arg, Binding, BufferSlice, Command, CommandList, Device, Error, Event, Kernel, MemoryKind,
    RecordedCommand, RecordedRange, Result, Scalar,
};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes that a corrupted copy within the device changes.
const MOST_CORRUPTED_BYTES: u64 = 16;

pub(super) struct FaultStream {
    device: Device,
    schedule: Arc<Schedule>,
    /// Of the device that copies may come from too.
    peer: Option<Arc<Schedule>>,
    inner: Box<dyn driver::Stream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first injected failure; what comes behind it is skipped.
    failure: Option<Error>,
    /// Calls that are still accepted before one reports the failure.
    unnoticed_calls: u64,
    /// When slow work is over.
    until: Option<Instant>,
    /// All delays so far.
    slowed_by: Duration,
}

impl State {
    fn poison(&mut self, error: Error, unnoticed_calls: u64) {
        if self.failure.is_none() {
            (self.failure, self.unnoticed_calls) = (Some(error), unnoticed_calls);
        }
    }
}

impl FaultStream {
    pub(super) fn new(
        device: Device,
        schedule: Arc<Schedule>,
        peer: Option<Arc<Schedule>>,
        inner: Box<dyn driver::Stream>,
    ) -> Self {
        Self { device, schedule, peer, inner, state: Mutex::default() }
    }

    /// Counts a call and carries it out.
    fn enqueue(
        &self,
        call: Call,
        what: &dyn fmt::Display,
        bytes: u64,
        work: impl FnOnce(Option<&Injection>) -> Result<()>,
    ) -> Result<()> {
        self.schedule.check()?;
        self.carry_out(self.schedule.next(call, bytes), what, bytes, work)
    }

    /// Does `work`, unless the stream is poisoned or its fate forbids; passes the fate on where bytes are to be changed.
    fn carry_out(
        &self,
        fate: Option<Injection>,
        what: &dyn fmt::Display,
        bytes: u64,
        work: impl FnOnce(Option<&Injection>) -> Result<()>,
    ) -> Result<()> {
        self.schedule.check()?;
        if self.is_skipping()? {
            return Ok(());
        }
        let Some(injection) = fate else { return work(None) };
        match injection.action {
            Action::Fault => {
                let error = injection.error(what, bytes, 0);
                self.state().poison(error, injection.unnoticed_calls());
                Ok(())
            }
            Action::Slow(delay) => {
                work(None)?;
                let mut state = self.state();
                let start = state.until.map_or_else(Instant::now, |until| until.max(Instant::now()));
                state.until = Some(start + delay);
                state.slowed_by += delay;
                Ok(())
            }
            Action::Corrupt => work(Some(&injection)),
            Action::Lost => Err(self.schedule.lose(&injection)),
            _ => Err(injection.error(what, bytes, 0)),
        }
    }

    /// Whether the stream has failed, which has not been noticed yet.
    ///
    /// # Errors
    /// The failure, once it is noticed.
    fn is_skipping(&self) -> Result<bool> {
        let mut state = self.state();
        match (&state.failure, state.unnoticed_calls) {
            (None, _) => Ok(false),
            (Some(error), 0) => Err(error.clone()),
            (Some(_), _) => {
                state.unnoticed_calls -= 1;
                Ok(true)
            }
        }
    }

    /// Reports the failure from now on.
    ///
    /// # Errors
    /// The failure.
    fn notice(&self) -> Result<()> {
        let mut state = self.state();
        state.unnoticed_calls = 0;
        state.failure.clone().map_or(Ok(()), Err)
    }

    fn copy_now(&self, dst: &BufferSlice, src: &BufferSlice, corruption: Option<&Injection>) -> Result<()> {
        let peer = self.peer.as_ref().filter(|_| !src.buffer().device().is_same_opening(self.device.id()));
        if let Some(Err(error)) = peer.map(|peer| peer.check()) {
            // The other end of the link is gone, and the copy with it.
            self.state().poison(driver::failure_of_peer(error), 0);
            return Ok(());
        }
        self.inner.copy(dst, src)?;
        match corruption {
            Some(injection) => self.corrupt_on_device(dst, injection),
            None => Ok(()),
        }
    }

    /// Overwrites some bytes of a range with others, behind what has been enqueued.
    fn corrupt_on_device(&self, range: &BufferSlice, injection: &Injection) -> Result<()> {
        let len = range.len_bytes().min(MOST_CORRUPTED_BYTES);
        if len == 0 {
            return Ok(());
        }
        let mut random = Random::new(injection.drawn);
        let offset = random.below(range.len_bytes() - len + 1);
        self.inner.fill(&range.slice(offset, len)?, &[random.next() as u8])
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl driver::Stream for FaultStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        self.enqueue(Call::Write, &"a write", dst.len_bytes(), |corruption| match corruption {
            None => self.inner.write(dst, src),
            Some(injection) => self.inner.write(dst, corrupted(src.as_slice(), injection).into()),
        })
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        self.enqueue(Call::Write, &"a write", dst.len_bytes(), |corruption| match corruption {
            None => self.inner.write_blocking(dst, src),
            Some(injection) => self.inner.write_blocking(dst, &corrupted(src, injection)),
        })
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.schedule.check()?;
        let start = Instant::now();
        // It would wait for the failure, and so notices one at once.
        self.notice()?;
        self.enqueue(Call::Read, &"a read", src.len_bytes(), |corruption| {
            self.inner.read_blocking(src, dst)?;
            if let Some(injection) = corruption {
                let bytes = corrupted(dst, injection);
                dst.copy_from_slice(&bytes);
            }
            Ok(())
        })?;
        let until = self.state().until;
        sleep_until(&self.schedule, until, start, None)?;
        self.notice()
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.enqueue(Call::Read, &"a read", src.len_bytes(), |corruption| match corruption {
            Some(injection) if src.len_bytes() > 0 => {
                // The source stays as it is, and the target is the copy's alone until that is over.
                let staging = self.device.allocate(src.len_bytes(), MemoryKind::Device)?.all();
                self.copy_now(&staging, src, Some(injection))?;
                self.inner.read(&staging, dst)
            }
            _ => self.inner.read(src, dst),
        })
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        let copy = |corruption: Option<&Injection>| self.copy_now(dst, src, corruption);
        self.enqueue(Call::Copy, &"a copy", dst.len_bytes(), copy)
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.enqueue(Call::Fill, &"a fill", dst.len_bytes(), |_| self.inner.fill(dst, pattern))
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.enqueue(Call::Launch, &Launch(kernel), 0, |_| self.inner.launch(kernel, grid, args))
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        self.schedule.check()?;
        let mut fates: Vec<_> =
            list.commands().iter().map(|command| self.schedule.next_of(command)).collect();
        if fates.iter().all(Option::is_none) {
            return self.carry_out(None, &"a replay", 0, |_| self.inner.replay(list, buffers, scalars));
        }
        let mut fates = fates.drain(..);
        list.enqueue(buffers, scalars, |command| {
            let fate = fates.next().flatten();
            match command {
                Command::Copy { dst, src } => {
                    let copy = |corruption: Option<&Injection>| self.copy_now(&dst, &src, corruption);
                    self.carry_out(fate, &"a recorded copy", dst.len_bytes(), copy)
                }
                Command::Fill { dst, pattern } => {
                    self.carry_out(fate, &"a recorded fill", dst.len_bytes(), |_| {
                        self.inner.fill(&dst, &pattern)
                    })
                }
                Command::Launch { kernel, grid, args } => self.carry_out(fate, &Launch(&kernel), 0, |_| {
                    if grid.contains(&0) { Ok(()) } else { self.inner.launch(&kernel, grid, &args) }
                }),
            }
        })
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        self.schedule.check()?;
        match self.schedule.next(Call::Record, 0) {
            Some(injection) if injection.action == Action::Lost => {
                return Err(self.schedule.lose(&injection));
            }
            Some(injection) => return Err(injection.error(&"recording an event", 0, 0)),
            None => {}
        }
        let (failure, until, slowed_by) = {
            let state = self.state();
            (state.failure.clone(), state.until, state.slowed_by)
        };
        let inner = self.inner.record()?;
        Ok(Box::new(FaultEvent::new(self.schedule.clone(), inner, failure, until, slowed_by)))
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.enqueue(Call::Wait, &"waiting for an event", 0, |_| {
            self.inner.wait(event)?;
            let of_peer = || FaultEvent::of(event, self.peer.as_ref()?);
            let Some(known) = FaultEvent::of(event, &self.schedule).or_else(of_peer) else { return Ok(()) };
            let mut state = self.state();
            state.until = state.until.max(known.until);
            if let Some(failure) = &known.failure {
                state.poison(failure.clone(), 0);
            } else if let Some(error) = known.lost_link(&self.schedule) {
                state.poison(error, 0);
            }
            Ok(())
        })
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.schedule.check()?;
        match self.schedule.next(Call::Synchronize, 0) {
            Some(injection) if injection.action == Action::Lost => {
                return Err(self.schedule.lose(&injection));
            }
            Some(injection) => return Err(injection.timeout(timeout)),
            None => {}
        }
        let start = Instant::now();
        self.inner.synchronize(timeout)?;
        let until = self.state().until;
        sleep_until(&self.schedule, until, start, timeout)?;
        self.notice()
    }

    fn reset(&self) -> Result<()> {
        self.schedule.check()?;
        if let Some(injection) = self.schedule.next(Call::Other, 0) {
            return Err(self.schedule.lose(&injection));
        }
        self.inner.reset()?;
        let until = self.state().until;
        sleep_until(&self.schedule, until, Instant::now(), None)?;
        let mut state = self.state();
        (state.failure, state.unnoticed_calls) = (None, 0);
        Ok(())
    }
}

impl Schedule {
    /// What befalls a recorded command.
    fn next_of(&self, command: &RecordedCommand) -> Option<Injection> {
        let len = |range: &RecordedRange| match range {
            RecordedRange::Fixed(slice) => slice.len_bytes(),
            RecordedRange::Slot { len, .. } => *len,
        };
        match command {
            RecordedCommand::Copy { dst, .. } => self.next(Call::Copy, len(dst)),
            RecordedCommand::Fill { dst, .. } => self.next(Call::Fill, len(dst)),
            RecordedCommand::Launch { .. } => self.next(Call::Launch, 0),
        }
    }
}

/// A launch in an error's text.
struct Launch<'a>(&'a Kernel);

impl fmt::Display for Launch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a launch of kernel '{}'", self.0.name())
    }
}

/// The bytes with one bit flipped.
fn corrupted(bytes: &[u8], injection: &Injection) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if !bytes.is_empty() {
        let bit = Random::new(injection.drawn).below(bytes.len() as u64 * 8);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
    bytes
}
