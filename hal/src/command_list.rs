//! Recorded work that is replayed with other buffers and scalars.

use crate::annotate::{self, Label};
use crate::buffer::fresh_id;
use crate::kernel::Overlap;
use crate::stream::{check_copy, check_fill};
use crate::{
    Arg, ArgType, BufferSlice, DType, Device, DeviceId, DeviceInfo, Error, Kernel, Result, Scalar, Stream,
};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Slots of each kind that a list may have.
const MAX_SLOTS: usize = 1 << 16;

/// What is bound to a buffer slot at replay.
pub type Binding = BufferSlice;

/// A range of device memory in a recorded command.
#[derive(Debug, Clone)]
pub enum RecordedRange {
    /// The same memory at every replay; the list holds it alive.
    Fixed(BufferSlice),
    /// A range inside whatever is bound to a slot.
    Slot {
        /// The slot's number.
        slot: usize,
        /// First byte within the binding.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl RecordedRange {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Fixed(slice) => slice.len_bytes(),
            Self::Slot { len, .. } => *len,
        }
    }

    /// How two ranges share memory if distinct slots are bound to distinct memory.
    fn overlap(&self, other: &Self) -> Overlap {
        let (a, b) = match (self, other) {
            (Self::Fixed(a), Self::Fixed(b)) if a.buffer().is_same(b.buffer()) => (a.range(), b.range()),
            (Self::Slot { slot: s, offset: o, len: l }, Self::Slot { slot: t, offset: p, len: m })
                if s == t =>
            {
                (*o..o.saturating_add(*l), *p..p.saturating_add(*m))
            }
            _ => return Overlap::None,
        };
        if a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start {
            Overlap::None
        } else if a == b {
            Overlap::Same
        } else {
            Overlap::Partial
        }
    }
}

/// An argument of a recorded launch.
#[derive(Debug, Clone)]
pub enum RecordedArg {
    /// Device memory.
    Buffer(RecordedRange),
    /// The same number at every replay.
    Scalar(Scalar),
    /// Whatever is bound to a scalar slot.
    ScalarSlot(usize),
}

/// One recorded command.
#[derive(Debug, Clone)]
pub enum RecordedCommand {
    /// A copy within the device.
    Copy {
        /// Target.
        dst: RecordedRange,
        /// Source.
        src: RecordedRange,
    },
    /// A repeated pattern.
    Fill {
        /// Target.
        dst: RecordedRange,
        /// 1, 2, 4 or 8 bytes.
        pattern: Vec<u8>,
    },
    /// A launch.
    Launch {
        /// Code.
        kernel: Kernel,
        /// Workgroups per axis.
        grid: [u32; 3],
        /// Arguments.
        args: Vec<RecordedArg>,
    },
}

/// A recorded command with its slots bound.
#[derive(Debug, Clone)]
pub enum Command {
    /// A copy within the device.
    Copy {
        /// Target.
        dst: BufferSlice,
        /// Source.
        src: BufferSlice,
    },
    /// A repeated pattern.
    Fill {
        /// Target.
        dst: BufferSlice,
        /// 1, 2, 4 or 8 bytes.
        pattern: Vec<u8>,
    },
    /// A launch.
    Launch {
        /// Code.
        kernel: Kernel,
        /// Workgroups per axis.
        grid: [u32; 3],
        /// Arguments.
        args: Vec<Arg>,
    },
}

/// Records commands in order. Plain data that holds the kernels and fixed buffers of its commands.
///
/// 1. [`new`](Self::new) and [`push`](Self::push) collect commands; nothing is checked or enqueued.
/// 2. [`Device::finish`] takes it, checks all of them and gives a [`CommandList`].
#[derive(Debug, Clone, Default)]
pub struct CommandListBuilder {
    commands: Vec<RecordedCommand>,
    labels: Labels,
}

/// Labels of the commands that were pushed while one held, by index; the rest have none. Usually empty.
type Labels = Vec<Option<Arc<Label>>>;

impl CommandListBuilder {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command behind the others, with the [label](crate::annotate) that holds on this thread. It is checked
    /// when the list is finished.
    pub fn push(&mut self, command: RecordedCommand) {
        if let Some(label) = annotate::current() {
            self.labels.resize(self.commands.len(), None);
            self.labels.push(Some(label));
        }
        self.commands.push(command);
    }

    /// Number of commands so far.
    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(crate) fn finish(self, device: &Device) -> Result<CommandList> {
        let mut buffer_slots = Vec::new();
        let mut scalar_slots = 0;
        for (index, command) in self.commands.iter().enumerate() {
            let check_owner = |owner: &DeviceId| {
                if owner.is_same_opening(device.id()) {
                    return Ok(());
                }
                let owner = owner.beside(device.id());
                Err(Error::invalid(format!(
                    "command {index} uses an object of {owner}; record it on that device"
                )))
            };
            if let RecordedCommand::Launch { kernel, args, .. } = command {
                check_owner(kernel.device())?;
                for arg in args {
                    if let RecordedArg::ScalarSlot(slot) = arg {
                        check_slot(index, *slot)?;
                        scalar_slots = scalar_slots.max(slot + 1);
                    }
                }
            }
            for range in command.ranges() {
                match range {
                    RecordedRange::Fixed(slice) => check_owner(slice.buffer().device())?,
                    RecordedRange::Slot { slot, offset, len } => {
                        let end = offset.checked_add(*len).ok_or_else(|| {
                            Error::invalid(format!("command {index} names bytes beyond the 64-bit range"))
                        })?;
                        check_slot(index, *slot)?;
                        if buffer_slots.len() <= *slot {
                            buffer_slots.resize(slot + 1, 0);
                        }
                        buffer_slots[*slot] = end.max(buffer_slots[*slot]);
                    }
                }
            }
        }
        let mut checked =
            Checked { alignments: vec![1; buffer_slots.len()], scalars: vec![None; scalar_slots] };
        for command in &self.commands {
            checked.command(device.info(), command)?;
        }
        let fixed = |range: &&RecordedRange| matches!(range, RecordedRange::Fixed(_));
        let has_fixed_ranges = self.commands.iter().any(|command| command.ranges().iter().any(fixed));
        let object = device.driver().prepare(&self.commands)?;
        Ok(CommandList(Arc::new(Inner {
            id: fresh_id(),
            device: device.id().clone(),
            commands: self.commands,
            labels: self.labels,
            buffer_slots,
            checked,
            has_fixed_ranges,
            object,
        })))
    }
}

/// What the commands demand of their slots. Everything else about them is checked when the list is finished, so that
/// a replay looks at bindings alone.
struct Checked {
    /// What each binding's offset must be a multiple of.
    alignments: Vec<u64>,
    /// Type of each scalar slot; `None` for one that no launch uses.
    scalars: Vec<Option<DType>>,
}

impl Checked {
    fn command(&mut self, info: &DeviceInfo, command: &RecordedCommand) -> Result<()> {
        match command {
            RecordedCommand::Copy { dst, src } => {
                if dst.len_bytes() != src.len_bytes() {
                    let (to, from) = (dst.len_bytes(), src.len_bytes());
                    return Err(Error::invalid(format!("cannot copy {from} bytes to a range of {to}")));
                }
                if dst.overlap(src) != Overlap::None {
                    return Err(Error::invalid("source and target of a recorded copy overlap"));
                }
                Ok(())
            }
            RecordedCommand::Fill { dst, pattern } => {
                let len = pattern.len() as u64;
                if !matches!(len, 1 | 2 | 4 | 8) {
                    return Err(Error::invalid(format!("a pattern has 1, 2, 4 or 8 bytes, got {len}")));
                }
                if !dst.len_bytes().is_multiple_of(len) {
                    return Err(Error::invalid(format!(
                        "a pattern of {len} bytes does not divide a range of {}",
                        dst.len_bytes()
                    )));
                }
                self.aligned(dst, len, || format!("a pattern of {len} bytes does not divide its range"))
            }
            RecordedCommand::Launch { kernel, grid, args } => self.launch(info, kernel, *grid, args),
        }
    }

    fn launch(
        &mut self,
        info: &DeviceInfo,
        kernel: &Kernel,
        grid: [u32; 3],
        args: &[RecordedArg],
    ) -> Result<()> {
        let (name, signature) = (kernel.name(), kernel.signature());
        signature.check_shape(name, info, grid, args.len())?;
        for (index, (arg, expected)) in args.iter().zip(&signature.args).enumerate() {
            let mismatch = |expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display| {
                Error::invalid(format!("argument {index} of kernel '{name}' must be {expected}, got {got}"))
            };
            match (arg, *expected) {
                (RecordedArg::Buffer(range), ArgType::Buffer { dtype, .. }) => {
                    let size = dtype.size() as u64;
                    if !range.len_bytes().is_multiple_of(size) {
                        return Err(mismatch(
                            &format!("whole {dtype}"),
                            &format!("{} bytes", range.len_bytes()),
                        ));
                    }
                    let align = info.limits.offset_alignment_bytes.max(size);
                    self.aligned(range, align, || {
                        format!(
                            "argument {index} of kernel '{name}' must start at a multiple of {align} bytes"
                        )
                    })?;
                }
                (RecordedArg::Scalar(scalar), ArgType::Scalar(dtype)) if scalar.dtype() == dtype => {}
                (RecordedArg::Scalar(scalar), ArgType::Scalar(dtype)) => {
                    return Err(mismatch(&dtype, &scalar.dtype()));
                }
                (RecordedArg::ScalarSlot(slot), ArgType::Scalar(dtype)) => match self.scalars[*slot] {
                    Some(other) if other != dtype => return Err(mismatch(&dtype, &other)),
                    _ => self.scalars[*slot] = Some(dtype),
                },
                (RecordedArg::Buffer(_), ArgType::Scalar(dtype)) => {
                    return Err(mismatch(&dtype, &"a buffer"));
                }
                (_, ArgType::Buffer { dtype, .. }) => {
                    return Err(mismatch(&format!("a buffer of {dtype}"), &"a scalar"));
                }
            }
        }
        let range = |arg: usize| match &args[arg] {
            RecordedArg::Buffer(range) => Some(range),
            _ => None,
        };
        signature.check_aliasing(name, |i, j| match (range(i), range(j)) {
            (Some(a), Some(b)) => a.overlap(b),
            _ => Overlap::None,
        })
    }

    /// Checks a range's own offset, and notes what its slot's binding must then satisfy.
    fn aligned(&mut self, range: &RecordedRange, align: u64, message: impl Fn() -> String) -> Result<()> {
        let (offset, slot) = match range {
            RecordedRange::Fixed(slice) => (slice.offset(), None),
            RecordedRange::Slot { slot, offset, .. } => (*offset, Some(*slot)),
        };
        if range.len_bytes() == 0 {
            return Ok(());
        }
        if !offset.is_multiple_of(align) {
            return Err(Error::invalid(format!("{}, got {offset}", message())));
        }
        if let Some(slot) = slot {
            self.alignments[slot] = self.alignments[slot].max(align);
        }
        Ok(())
    }
}

impl RecordedCommand {
    fn ranges(&self) -> Vec<&RecordedRange> {
        match self {
            Self::Copy { dst, src } => vec![dst, src],
            Self::Fill { dst, .. } => vec![dst],
            Self::Launch { args, .. } => args
                .iter()
                .filter_map(|arg| match arg {
                    RecordedArg::Buffer(range) => Some(range),
                    _ => None,
                })
                .collect(),
        }
    }
}

/// Recorded commands of one device, immutable; a CUDA graph where there is one, a loop elsewhere.
///
/// 1. [`Device::finish`] makes it; it holds the kernels and fixed buffers of its commands.
/// 2. [`Stream::replay`] enqueues it with a buffer for each buffer slot and a number for each scalar slot, from any
///    thread, any number of times at once.
/// 3. Clones are handles; enqueued replays hold what they use, so all handles may be dropped meanwhile.
#[derive(Clone)]
pub struct CommandList(Arc<Inner>);

struct Inner {
    id: u64,
    device: DeviceId,
    commands: Vec<RecordedCommand>,
    labels: Labels,
    /// Bytes that each binding must have at least.
    buffer_slots: Vec<u64>,
    checked: Checked,
    /// Whether memory is named beside the slots, which bindings may then overlap.
    has_fixed_ranges: bool,
    object: Option<Box<dyn Any + Send + Sync>>,
}

impl CommandList {
    /// A number that no other object of this process has had.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The device that it was recorded for.
    pub fn device(&self) -> &DeviceId {
        &self.0.device
    }

    /// The commands, unbound.
    pub fn commands(&self) -> &[RecordedCommand] {
        &self.0.commands
    }

    /// The label under which command `index` was recorded, if one held.
    pub fn label(&self, index: usize) -> Option<&Label> {
        self.0.labels.get(index)?.as_deref()
    }

    /// Whether the device has made a graph of its own of it ([`driver::Device::prepare`](crate::driver::Device::prepare)),
    /// which may run faster than its commands one by one.
    pub fn is_native(&self) -> bool {
        self.0.object.is_some()
    }

    /// Bytes that the binding of each buffer slot must have at least.
    pub fn buffer_slots(&self) -> &[u64] {
        &self.0.buffer_slots
    }

    /// Number of scalar slots.
    pub fn scalar_slots(&self) -> usize {
        self.0.checked.scalars.len()
    }

    /// The backend's native graph, if it is a `T`. For backends.
    pub fn object<T: Any>(&self) -> Option<&T> {
        self.0.object.as_ref()?.downcast_ref()
    }

    /// Binds each command in order and passes it to `enqueue`, on the calling thread. For backends.
    ///
    /// Blocks as `enqueue` does. Each command owns handles to what it uses. Launches over an empty grid are left out, as
    /// [`Stream::launch`] leaves them out.
    ///
    /// # Errors
    /// The first error of `enqueue`, which ends the loop; `InvalidArgument` when a binding is missing or too short.
    pub fn enqueue(
        &self,
        buffers: &[Binding],
        scalars: &[Scalar],
        mut enqueue: impl FnMut(Command) -> Result<()>,
    ) -> Result<()> {
        self.0.commands.iter().try_for_each(|command| match bind(command, buffers, scalars)? {
            Command::Launch { grid, .. } if grid.contains(&0) => Ok(()),
            command => enqueue(command),
        })
    }

    pub(crate) fn check(&self, stream: &Stream, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        let own = stream.device().id();
        if !self.device().is_same_opening(own) {
            return Err(Error::invalid(format!(
                "the list was recorded for {}; record it anew",
                self.device().beside(own)
            )));
        }
        let expected = (self.0.buffer_slots.len(), self.scalar_slots());
        if (buffers.len(), scalars.len()) != expected {
            return Err(Error::invalid(format!(
                "the list has {} buffer and {} scalar slots, got {} and {}",
                expected.0,
                expected.1,
                buffers.len(),
                scalars.len()
            )));
        }
        for (slot, (binding, needed)) in buffers.iter().zip(&self.0.buffer_slots).enumerate() {
            let owner = binding.buffer().device();
            if !owner.is_same_opening(own) {
                let owner = owner.beside(own);
                return Err(Error::invalid(format!("the buffer bound to slot {slot} is of {owner}")));
            }
            if binding.len_bytes() < *needed {
                return Err(Error::invalid(format!(
                    "slot {slot} needs {needed} bytes, got a binding of {}",
                    binding.len_bytes()
                )));
            }
            let align = self.0.checked.alignments[slot];
            if !binding.offset().is_multiple_of(align) {
                return Err(Error::invalid(format!(
                    "the binding of slot {slot} must start at a multiple of {align} bytes, got {}",
                    binding.offset()
                )));
            }
        }
        for (slot, (scalar, expected)) in scalars.iter().zip(&self.0.checked.scalars).enumerate() {
            if let Some(expected) = expected
                && scalar.dtype() != *expected
            {
                let got = scalar.dtype();
                return Err(Error::invalid(format!("scalar slot {slot} must be {expected}, got {got}")));
            }
        }
        // Distinct slots were taken for distinct memory; where bindings overlap, each command decides.
        let overlapping = buffers
            .iter()
            .enumerate()
            .any(|(i, a)| buffers[..i].iter().any(|b| a.overlaps(b) || b.overlaps(a)));
        if !overlapping && !self.0.has_fixed_ranges {
            return Ok(());
        }
        self.enqueue(buffers, scalars, |command| match command {
            Command::Launch { kernel, grid, args } => stream.check_launch(&kernel, grid, &args),
            Command::Copy { dst, src } => check_copy(&dst, &src),
            Command::Fill { dst, pattern } => check_fill(&dst, &pattern),
        })
    }
}

impl fmt::Debug for CommandList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandList#{}({}, {} commands)", self.id(), self.device(), self.commands().len())
    }
}

/// The table of slots is as long as the largest number, so a stray number must not decide on memory.
fn check_slot(command: usize, slot: usize) -> Result<()> {
    if slot < MAX_SLOTS {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "command {command} uses slot {slot}, but at most {MAX_SLOTS} are possible; number slots from 0 without gaps"
    )))
}

fn bind(command: &RecordedCommand, buffers: &[Binding], scalars: &[Scalar]) -> Result<Command> {
    let range = |range: &RecordedRange| match range {
        RecordedRange::Fixed(slice) => Ok(slice.clone()),
        RecordedRange::Slot { slot, offset, len } => buffers
            .get(*slot)
            .ok_or_else(|| Error::invalid(format!("nothing is bound to buffer slot {slot}")))?
            .slice(*offset, *len),
    };
    Ok(match command {
        RecordedCommand::Copy { dst, src } => Command::Copy { dst: range(dst)?, src: range(src)? },
        RecordedCommand::Fill { dst, pattern } => {
            Command::Fill { dst: range(dst)?, pattern: pattern.clone() }
        }
        RecordedCommand::Launch { kernel, grid, args } => {
            let args = args.iter().map(|arg| match arg {
                RecordedArg::Buffer(buffer) => Ok(Arg::Buffer(range(buffer)?)),
                RecordedArg::Scalar(scalar) => Ok(Arg::Scalar(*scalar)),
                RecordedArg::ScalarSlot(slot) => match scalars.get(*slot) {
                    Some(scalar) => Ok(Arg::Scalar(*scalar)),
                    None => Err(Error::invalid(format!("nothing is bound to scalar slot {slot}"))),
                },
            });
            Command::Launch { kernel: kernel.clone(), grid: *grid, args: args.collect::<Result<_>>()? }
        }
    })
}
