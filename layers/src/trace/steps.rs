//! Descriptions of commands, as parts of lines. Those of a command list are made once, for all its replays.

use crate::trace::json::{self, number_field, text_field};
use halite_hal::annotate::Label;
use halite_hal::{
    Access, Arg, ArgType, CommandList, Kernel, RecordedArg, RecordedCommand, RecordedRange, Signature,
};

/// Commands that the description of a replay as a whole names; of further ones only the number is told.
const MOST_NAMES: usize = 64;

/// The category of a launch's line.
pub(crate) const LAUNCH: &str = "launch";
/// The category of a copy's or a fill's line.
pub(crate) const COPY: &str = "copy";
/// The category of a whole replay's line.
pub(crate) const REPLAY: &str = "replay";

/// A command list, described.
pub(crate) struct Steps {
    /// One part for each command that does something.
    pub(crate) steps: Vec<Vec<u8>>,
    /// The part for a replay as a whole.
    pub(crate) whole: Vec<u8>,
}

impl Steps {
    pub(crate) fn new(list: &CommandList) -> Self {
        let mut steps = Vec::with_capacity(list.commands().len());
        let mut names = Vec::new();
        let mut launches = 0;
        for (index, command) in
            list.commands().iter().enumerate().filter(|(_, command)| does_something(command))
        {
            let label = list.label(index);
            let (name, part) = match command {
                RecordedCommand::Copy { dst, .. } => ("copy", transfer_part("copy", len(dst), label)),
                RecordedCommand::Fill { dst, .. } => ("fill", transfer_part("fill", len(dst), label)),
                RecordedCommand::Launch { kernel, grid, args } => {
                    launches += 1;
                    let bytes = traffic(kernel.signature(), args.iter().map(recorded_len));
                    (kernel.name(), launch_part(kernel.name(), *grid, bytes, label))
                }
            };
            names.push(named(label).map_or(name, |label| &label.name));
            steps.push(part);
        }
        let whole = json::part(&format!("replay of {} commands", steps.len()), REPLAY, |out| {
            number_field(out, "list", list.id());
            number_field(out, "commands", steps.len() as u64);
            number_field(out, "launches", launches);
            text_field(out, "steps", &names[..names.len().min(MOST_NAMES)].join(", "));
        });
        Self { steps, whole }
    }
}

/// Whether a recorded command reaches the device: a launch over nothing does not.
pub(crate) fn does_something(command: &RecordedCommand) -> bool {
    !matches!(command, RecordedCommand::Launch { grid, .. } if grid.contains(&0))
}

/// The part for a launch. `read` and `written` are the bytes of the buffers that the kernel may read and write.
pub(crate) fn launch_part(
    kernel: &str,
    grid: [u32; 3],
    (read, written): (u64, u64),
    label: Option<&Label>,
) -> Vec<u8> {
    let label = named(label);
    json::part(label.map_or(kernel, |label| &label.name), LAUNCH, |out| {
        text_field(out, "kernel", kernel);
        details(out, label);
        text_field(out, "grid", &format!("{}x{}x{}", grid[0], grid[1], grid[2]));
        number_field(out, "read", read);
        number_field(out, "written", written);
    })
}

/// The part for a copy or a fill.
pub(crate) fn transfer_part(name: &str, bytes: u64, label: Option<&Label>) -> Vec<u8> {
    json::part(name, COPY, |out| {
        if let Some(label) = named(label) {
            text_field(out, "for", &label.name);
        }
        details(out, label);
        number_field(out, "bytes", bytes);
    })
}

/// Adds what a label says beside the name.
pub(crate) fn details(out: &mut Vec<u8>, label: Option<&Label>) {
    for (key, value) in label.iter().flat_map(|label| &label.details) {
        text_field(out, key, value);
    }
}

/// Bytes of the buffers that a launch may read and write.
pub(crate) fn launch_traffic(kernel: &Kernel, args: &[Arg]) -> (u64, u64) {
    let lens = args.iter().map(|arg| match arg {
        Arg::Buffer(slice) => slice.len_bytes(),
        Arg::Scalar(_) => 0,
    });
    traffic(kernel.signature(), lens)
}

fn traffic(signature: &Signature, lens: impl Iterator<Item = u64>) -> (u64, u64) {
    let (mut read, mut written) = (0, 0);
    for (arg, len) in signature.args.iter().zip(lens) {
        if let ArgType::Buffer { access, .. } = arg {
            read += if *access == Access::Write { 0 } else { len };
            written += if access.writes() { len } else { 0 };
        }
    }
    (read, written)
}

fn recorded_len(arg: &RecordedArg) -> u64 {
    match arg {
        RecordedArg::Buffer(range) => len(range),
        RecordedArg::Scalar(_) | RecordedArg::ScalarSlot(_) => 0,
    }
}

fn len(range: &RecordedRange) -> u64 {
    match range {
        RecordedRange::Fixed(slice) => slice.len_bytes(),
        RecordedRange::Slot { len, .. } => *len,
    }
}

/// A label that says something.
fn named(label: Option<&Label>) -> Option<&Label> {
    label.filter(|label| !label.name.is_empty())
}
