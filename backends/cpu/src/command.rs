//! Queued commands, and what executing one does.
//!
//! A [`Batch`] keeps the arguments of its launches side by side, so that queueing a launch allocates nothing once
//! the vectors have grown.

use crate::buffer::address;
use crate::event::EventCore;
use crate::kernel;
use crate::pool::Team;
use halite_hal::driver::{HostBytes, HostTarget};
use halite_hal::{
    Arg, Binding, Buffer, BufferSlice, CommandList, Error, Kernel, NativeArg, RecordedArg, RecordedCommand,
    RecordedRange, Result, Scalar,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Something that a stream does. Each variant holds what it uses.
pub(crate) enum Command {
    /// Owned bytes to the device.
    Write {
        dst: BufferSlice,
        src: HostBytes,
    },
    /// Borrowed bytes to the device; the caller blocks until this is done.
    WriteBorrowed {
        dst: BufferSlice,
        src: HostRange,
    },
    /// From the device to owned memory.
    Read {
        src: BufferSlice,
        dst: HostTarget,
    },
    /// From the device to borrowed memory; the caller blocks until this is done.
    ReadBorrowed {
        src: BufferSlice,
        dst: HostRange,
    },
    Copy {
        dst: BufferSlice,
        src: BufferSlice,
    },
    Fill {
        dst: BufferSlice,
        pattern: Pattern,
    },
    /// A launch; its arguments and buffers are the next `args` and `buffers` of the batch.
    Launch {
        kernel: Kernel,
        grid: [u32; 3],
        args: u32,
        buffers: u32,
    },
    Replay(Box<Replay>),
    Record(Arc<EventCore>),
    /// Suspends the stream until the event is reached.
    Wait(Arc<EventCore>),
    /// Forgets the failure, and reaches the event without one.
    Reset(Arc<EventCore>),
}

/// Recorded commands with what is bound to their slots; bound when they run, on the pool.
pub(crate) struct Replay {
    pub(crate) list: CommandList,
    pub(crate) buffers: Vec<Binding>,
    pub(crate) scalars: Vec<Scalar>,
}

/// Memory of a caller that blocks until the command is done.
pub(crate) struct HostRange {
    pub(crate) ptr: *mut u8,
    pub(crate) len: usize,
}

// SAFETY: the borrow that it stands for is held by a thread that blocks until the command is done or skipped
// (`CpuStream::read_blocking`, `write_blocking`), so it may be used from the thread that runs the command.
unsafe impl Send for HostRange {}

/// 1, 2, 4 or 8 bytes to repeat.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    bytes: [u8; 8],
    len: usize,
}

/// Commands in order.
#[derive(Default)]
pub(crate) struct Batch {
    commands: VecDeque<Command>,
    /// Arguments of all launches; those before `next_arg` are done with.
    args: Vec<NativeArg>,
    next_arg: usize,
    /// Buffers of all launches that are not done.
    buffers: VecDeque<Buffer>,
}

/// What became of a command.
pub(crate) enum Progress {
    /// It is done, or was skipped.
    Done,
    /// It waits for this event, and stays the first of the batch.
    Blocked(Arc<EventCore>),
    /// The failure is forgotten; the event is to be reached once everyone can see that.
    Reset(Arc<EventCore>),
    /// There is none.
    Empty,
}

/// Copies and fills from this size on are shared among threads, in pieces of [`PIECE_BYTES`]: a single core does
/// not saturate the memory of most machines, and below it a wake-up costs more than is gained.
const SHARED_FROM_BYTES: usize = 4 << 20;
const PIECE_BYTES: usize = 1 << 20;
/// A batch that grew beyond this many entries gives its memory back when it is empty.
const KEPT_ENTRIES: usize = 4096;

impl Pattern {
    pub(crate) fn new(pattern: &[u8]) -> Result<Self> {
        let len = pattern.len();
        if !matches!(len, 1 | 2 | 4 | 8) {
            return Err(Error::invalid(format!("a pattern has 1, 2, 4 or 8 bytes, got {len}")));
        }
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(pattern);
        Ok(Self { bytes, len })
    }
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(crate) fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    pub(crate) fn push_launch(&mut self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let object = kernel::object(kernel)?;
        let (first_arg, first_buffer) = (self.args.len(), self.buffers.len());
        for (index, arg) in args.iter().enumerate() {
            match object.native_arg(index, arg) {
                Ok(native) => self.args.push(native),
                Err(error) => {
                    self.args.truncate(first_arg);
                    self.buffers.truncate(first_buffer);
                    return Err(error);
                }
            }
            if let Arg::Buffer(slice) = arg {
                self.buffers.push_back(slice.buffer().clone());
            }
        }
        let buffers = (self.buffers.len() - first_buffer) as u32;
        self.push(Command::Launch { kernel: kernel.clone(), grid, args: args.len() as u32, buffers });
        Ok(())
    }

    /// Executes the first command, or skips it when the stream has failed; `failure` becomes that of the stream.
    pub(crate) fn advance(&mut self, failure: &mut Option<Error>, team: &Team<'_>) -> Progress {
        if let Some(Command::Wait(event)) = self.commands.front()
            && failure.is_none()
            && !event.is_over()
        {
            return Progress::Blocked(event.clone());
        }
        let Some(command) = self.commands.pop_front() else {
            self.reclaim();
            return Progress::Empty;
        };
        match command {
            Command::Record(event) => event.reach(failure.clone()),
            Command::Reset(event) => {
                *failure = None;
                return Progress::Reset(event);
            }
            Command::Wait(event) => {
                if failure.is_none() {
                    *failure = event.is_done().err();
                }
            }
            Command::Launch { kernel, grid, args, buffers } => {
                let args = self.next_arg..self.next_arg + args as usize;
                self.next_arg = args.end;
                if failure.is_none() {
                    // SAFETY: `push_launch` made the arguments, the batch holds their buffers, and the caller of
                    // the stream has checked the launch (the contract of `driver::Stream`).
                    let result = kernel::object(&kernel)
                        .and_then(|object| unsafe { object.run(team, grid, &self.args[args]) });
                    *failure = result.err();
                }
                release((self.buffers.drain(..buffers as usize), kernel));
            }
            command => {
                if failure.is_none() {
                    *failure = execute(&command, team).err();
                }
                release(command);
            }
        }
        Progress::Done
    }

    fn reclaim(&mut self) {
        self.args.clear();
        self.next_arg = 0;
        if self.args.capacity().max(self.commands.capacity()) > KEPT_ENTRIES {
            *self = Self::default();
        }
    }
}

/// Drops what a command held. The last handle of a kernel drops the user's function with it, which may panic.
fn release<T>(held: T) {
    if catch_unwind(AssertUnwindSafe(|| drop(held))).is_err() {
        log::error!("a kernel panicked when it was dropped");
    }
}

/// Moves the bytes of a copy, repeats those of a fill, or replays a list.
fn execute(command: &Command, team: &Team<'_>) -> Result<()> {
    match command {
        Command::Write { dst, src } => {
            let src = src.as_slice();
            // SAFETY: `transfer` is told the lengths that both sides were made with; the command holds both.
            unsafe { transfer(team, (address(dst)?, len(dst)), (src.as_ptr(), src.len())) }
        }
        Command::WriteBorrowed { dst, src } => {
            // SAFETY: as above; the borrow lasts because its owner blocks (see `HostRange`).
            unsafe { transfer(team, (address(dst)?, len(dst)), (src.ptr, src.len)) }
        }
        Command::Read { src, dst } => {
            // SAFETY: as above; this copy is the one writer of the target (the contract of `HostTarget`).
            unsafe { transfer(team, (dst.as_mut_ptr(), dst.len_bytes()), (address(src)?, len(src))) }
        }
        Command::ReadBorrowed { src, dst } => {
            // SAFETY: as above; the borrow lasts because its owner blocks (see `HostRange`).
            unsafe { transfer(team, (dst.ptr, dst.len), (address(src)?, len(src))) }
        }
        Command::Copy { dst, src } => {
            // SAFETY: as above.
            unsafe { transfer(team, (address(dst)?, len(dst)), (address(src)?, len(src))) }
        }
        Command::Fill { dst, pattern } => {
            // SAFETY: the command holds the range, and its address is that of `len` bytes.
            unsafe { fill(team, address(dst)?, len(dst), *pattern) }
        }
        Command::Replay(replay) => return replay.run(team),
        Command::Launch { .. } | Command::Record(_) | Command::Wait(_) | Command::Reset(_) => {}
    }
    Ok(())
}

impl Replay {
    /// Runs the list's commands in order, up to the first failure.
    fn run(&self, team: &Team<'_>) -> Result<()> {
        let mut args = Vec::new();
        for command in self.list.commands() {
            match command {
                RecordedCommand::Copy { dst, src } => {
                    let (dst, src) = (self.range(dst)?, self.range(src)?);
                    // SAFETY: `range` gives addresses with the lengths that are valid there; this value holds the
                    // list, which holds fixed ranges, and the bindings.
                    unsafe { transfer(team, dst, (src.0, src.1)) }
                }
                RecordedCommand::Fill { dst, pattern } => {
                    let (dst, len) = self.range(dst)?;
                    // SAFETY: as above.
                    unsafe { fill(team, dst, len, Pattern::new(pattern)?) }
                }
                RecordedCommand::Launch { kernel, grid, args: recorded } => {
                    if grid.contains(&0) {
                        continue;
                    }
                    let kernel = kernel::object(kernel)?;
                    args.clear();
                    for (index, arg) in recorded.iter().enumerate() {
                        args.push(match arg {
                            RecordedArg::Scalar(scalar) => NativeArg::Scalar(*scalar),
                            RecordedArg::ScalarSlot(slot) => NativeArg::Scalar(self.scalar(*slot)?),
                            RecordedArg::Buffer(range) => {
                                let (ptr, len) = self.range(range)?;
                                kernel.native_buffer(index, ptr, len as u64)?
                            }
                        });
                    }
                    // SAFETY: made by `native_buffer` from memory that this value holds; the layer checks every
                    // launch of a list with these bindings before it passes the replay on.
                    unsafe { kernel.run(team, *grid, &args)? }
                }
            }
        }
        Ok(())
    }

    fn range(&self, range: &RecordedRange) -> Result<(*mut u8, usize)> {
        match range {
            RecordedRange::Fixed(slice) => Ok((address(slice)?, len(slice))),
            RecordedRange::Slot { slot, offset, len } => {
                let binding = self.buffers.get(*slot);
                let inside = offset.checked_add(*len);
                let Some((binding, _)) = binding.zip(inside).filter(|(b, end)| *end <= b.len_bytes()) else {
                    return Err(Error::invalid(format!("what is bound to buffer slot {slot} is too short")));
                };
                // Inside of the binding, so both numbers fit `usize`.
                Ok((address(binding)?.wrapping_add(*offset as usize), *len as usize))
            }
        }
    }

    fn scalar(&self, slot: usize) -> Result<Scalar> {
        let scalar = self.scalars.get(slot).copied();
        scalar.ok_or_else(|| Error::invalid(format!("nothing is bound to scalar slot {slot}")))
    }
}

fn len(slice: &BufferSlice) -> usize {
    // A range of host memory, so its length fits.
    slice.len_bytes() as usize
}

/// Copies as many bytes as both sides have; the layer has checked that they agree.
///
/// # Safety
/// Both ranges are valid for their lengths, do not overlap, and nobody else writes them until this returns.
unsafe fn transfer(team: &Team<'_>, dst: (*mut u8, usize), src: (*const u8, usize)) {
    let (to, from) = (Place(dst.0), Place(src.0.cast_mut()));
    pieces(team, dst.1.min(src.1), |piece| {
        // SAFETY: the piece lies inside of both ranges; the rest is this function's own contract.
        unsafe { from.at(piece.start).copy_to_nonoverlapping(to.at(piece.start), piece.len()) }
    });
}

/// Repeats `pattern` over `len` bytes.
///
/// # Safety
/// The range is valid for `len` bytes, and nobody else uses it until this returns.
unsafe fn fill(team: &Team<'_>, dst: *mut u8, len: usize, pattern: Pattern) {
    let to = Place(dst);
    pieces(team, len, |piece| {
        // SAFETY: the piece lies inside of the range, is initialised as all device memory is, and is this thread's.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.at(piece.start), piece.len()) };
        match pattern.len {
            1 => bytes.fill(pattern.bytes[0]),
            2 => repeat::<2>(bytes, pattern),
            4 => repeat::<4>(bytes, pattern),
            _ => repeat::<8>(bytes, pattern),
        }
    });
}

fn repeat<const N: usize>(bytes: &mut [u8], pattern: Pattern) {
    let mut element = [0; N];
    element.copy_from_slice(&pattern.bytes[..N]);
    bytes.as_chunks_mut().0.fill(element);
}

/// Calls `visit` for ranges that together are `0..len`, on several threads when that is worth it.
fn pieces(team: &Team<'_>, len: usize, visit: impl Fn(Range<usize>) + Sync) {
    if len < SHARED_FROM_BYTES || team.threads() == 1 {
        // An empty range may have a dangling address, which is never looked at.
        return if len > 0 {
            visit(0..len)
        };
    }
    team.share(len.div_ceil(PIECE_BYTES) as u64, &|shares| {
        while let Some(range) = shares.take() {
            visit(range.start as usize * PIECE_BYTES..(range.end as usize * PIECE_BYTES).min(len));
        }
    });
}

/// An address that may go to the threads of a team.
#[derive(Clone, Copy)]
struct Place(*mut u8);

// SAFETY: only `transfer` and `fill` make one, and give each thread a piece of its own.
unsafe impl Sync for Place {}

impl Place {
    /// # Safety
    /// The offset lies inside of the range that starts here.
    unsafe fn at(self, offset: usize) -> *mut u8 {
        // SAFETY: this function's own contract.
        unsafe { self.0.add(offset) }
    }
}
