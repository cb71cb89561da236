//! Recorded work that is replayed with other buffers and scalars.

use crate::buffer::fresh_id;
use crate::stream::{check_copy, check_fill};
use crate::{Arg, BufferSlice, Device, DeviceId, Error, Kernel, Result, Scalar, Stream};
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

/// Records commands in order; [`Device::finish`] turns it into a [`CommandList`].
#[derive(Debug, Clone, Default)]
pub struct CommandListBuilder {
    commands: Vec<RecordedCommand>,
}

impl CommandListBuilder {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command behind the others.
    pub fn push(&mut self, command: RecordedCommand) {
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
            let foreign = |id: &DeviceId| {
                Error::invalid(format!("command {index} uses an object of {id}; record it on that device"))
            };
            if let RecordedCommand::Launch { kernel, args, .. } = command {
                if kernel.device() != device.id() {
                    return Err(foreign(kernel.device()));
                }
                for arg in args {
                    if let RecordedArg::ScalarSlot(slot) = arg {
                        check_slot(index, *slot)?;
                        scalar_slots = scalar_slots.max(slot + 1);
                    }
                }
            }
            for range in command.ranges() {
                match range {
                    RecordedRange::Fixed(slice) if slice.buffer().device() != device.id() => {
                        return Err(foreign(slice.buffer().device()));
                    }
                    RecordedRange::Fixed(_) => {}
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
        let object = device.driver().prepare(&self.commands)?;
        Ok(CommandList(Arc::new(Inner {
            id: fresh_id(),
            device: device.id().clone(),
            commands: self.commands,
            buffer_slots,
            scalar_slots,
            object,
        })))
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
/// [`Stream::replay`] enqueues it with a buffer for each buffer slot and a number for each scalar slot. Clones are
/// handles; it may be replayed from any thread, any number of times at once.
#[derive(Clone)]
pub struct CommandList(Arc<Inner>);

struct Inner {
    id: u64,
    device: DeviceId,
    commands: Vec<RecordedCommand>,
    /// Bytes that each binding must have at least.
    buffer_slots: Vec<u64>,
    scalar_slots: usize,
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

    /// Bytes that the binding of each buffer slot must have at least.
    pub fn buffer_slots(&self) -> &[u64] {
        &self.0.buffer_slots
    }

    /// Number of scalar slots.
    pub fn scalar_slots(&self) -> usize {
        self.0.scalar_slots
    }

    /// The backend's native graph, if it is a `T`. For backends.
    pub fn object<T: Any>(&self) -> Option<&T> {
        self.0.object.as_ref()?.downcast_ref()
    }

    /// Binds each command in order and passes it to `enqueue`. For backends.
    ///
    /// # Errors
    /// The first error of `enqueue`; `InvalidArgument` when a binding is missing or too short.
    pub fn enqueue(
        &self,
        buffers: &[Binding],
        scalars: &[Scalar],
        mut enqueue: impl FnMut(Command) -> Result<()>,
    ) -> Result<()> {
        self.0.commands.iter().try_for_each(|command| enqueue(bind(command, buffers, scalars)?))
    }

    pub(crate) fn check(&self, stream: &Stream, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        if stream.device().id() != self.device() {
            return Err(Error::invalid(format!(
                "the list was recorded for {}; record it anew",
                self.device()
            )));
        }
        let expected = (self.0.buffer_slots.len(), self.0.scalar_slots);
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
            if binding.buffer().device() != self.device() {
                let owner = binding.buffer().device();
                return Err(Error::invalid(format!("the buffer bound to slot {slot} is of {owner}")));
            }
            if binding.len_bytes() < *needed {
                return Err(Error::invalid(format!(
                    "slot {slot} needs {needed} bytes, got a binding of {}",
                    binding.len_bytes()
                )));
            }
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
