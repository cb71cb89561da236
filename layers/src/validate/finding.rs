//! What the layer finds, and how it reads.

use halite_hal::DeviceId;
use std::fmt;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FindingKind {
    /// A buffer or a kernel that this opening of the device did not make. Refused.
    ForeignHandle,
    /// A wait for an event that no stream of this opening recorded. Refused.
    EventNotRecorded,
    /// A copy or a binding that reaches beyond a range. Refused.
    OutOfRange,
    /// A copy whose source and target share memory. Refused.
    Overlap,
    /// A pattern or an argument that does not start where it must. Refused.
    Misaligned,
    /// A launch or a replay that does not fit its signature. Refused.
    Signature,
    /// A launch beyond the limits of the device. Refused.
    Limit,
    /// Work for a device after it had said that it is lost. Answered with the loss; the driver is not asked.
    AfterLoss,
    /// A kernel or the host reads bytes that nothing has written.
    UnwrittenRead,
    /// Two streams use the same bytes, one of them to write, and nothing orders them.
    Race,
    /// Bytes behind the end of a buffer were overwritten.
    RedZone,
    /// Memory that the host addresses changed before the work that reads it was over.
    HostMemoryChanged,
    /// An object that is still there when all should be gone.
    Leak,
}

impl FindingKind {
    /// The kind's name, as it stands in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::ForeignHandle => "foreign handle",
            Self::EventNotRecorded => "event not recorded",
            Self::OutOfRange => "out of range",
            Self::Overlap => "overlap",
            Self::Misaligned => "misaligned",
            Self::Signature => "signature",
            Self::Limit => "limit",
            Self::AfterLoss => "call after a loss",
            Self::UnwrittenRead => "unwritten read",
            Self::Race => "race",
            Self::RedZone => "red zone",
            Self::HostMemoryChanged => "host memory changed",
            Self::Leak => "leak",
        }
    }
}

/// One thing that is wrong: what, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The device.
    pub device: DeviceId,
    /// The object that it concerns, as `Buffer#7 (4096 bytes)`.
    pub object: String,
    /// What was done, and why that is wrong.
    pub message: String,
    /// Where it was done: the innermost caller outside of Halite's crates, as far as symbols tell.
    pub place: String,
    /// Where the object was made, if the layer saw that.
    pub origin: Option<String>,
    /// How to mend it.
    pub remedy: String,
}

impl fmt::Display for Finding {
    /// A block of lines without a final line break.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, device, object, message, place, origin, remedy } = self;
        writeln!(f, "validate: {device}: {}: {message}", kind.name())?;
        writeln!(f, "  object: {object}")?;
        if let Some(origin) = origin {
            writeln!(f, "  made:   {origin}")?;
        }
        writeln!(f, "  where:  {place}")?;
        write!(f, "  mend:   {remedy}")
    }
}
