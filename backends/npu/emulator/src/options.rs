//! Options for opening the emulator, and the machine that they describe.

use crate::failure::{Failure, Result};
use crate::machine::MachineConfig;
use halite_hal::plugin;
use halite_profiles::Machine;
use std::path::Path;

/// Every key, with what it means.
const KEYS: [(&str, &str); 3] = [
    ("machine", "a machine description, a YAML file"),
    ("threads", "host threads that execute the blocks of a launch"),
    ("lose_after", "commands after which the device is lost, in the middle of the last one"),
];

/// How a device is opened.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) machine_name: String,
    pub(crate) config: MachineConfig,
    pub(crate) lose_after: Option<u64>,
}

impl Options {
    /// Reads keys and values; later ones win.
    pub(crate) fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut machine = Machine::builtin();
        let (mut threads, mut lose_after) = (None, None);
        for (key, value) in pairs {
            match key {
                "machine" => {
                    machine = Machine::from_file(Path::new(value)).map_err(|error| {
                        Failure::new(plugin::STATUS_BAD_FORMAT, format!("option machine: {error}"))
                    })?;
                }
                "threads" => threads = Some(positive(key, value)?),
                "lose_after" => lose_after = Some(positive(key, value)?),
                _ => {
                    let known: Vec<_> =
                        KEYS.iter().map(|(key, meaning)| format!("{key} ({meaning})")).collect();
                    return Err(Failure::invalid(format!(
                        "unknown option '{key}'; known options: {}",
                        known.join(", ")
                    )));
                }
            }
        }
        let mut config = configure(&machine)?;
        if let Some(threads) = threads {
            config.host_threads = size("threads", threads)?;
        }
        Ok(Self { machine_name: machine.name, config, lose_after })
    }
}

/// What the functional machine needs of the description.
fn configure(machine: &Machine) -> Result<MachineConfig> {
    let (buffers, alignment) = (&machine.buffers, &machine.alignment);
    Ok(MachineConfig {
        l1_bytes: size("buffers.l1", buffers.l1)?,
        l0a_bytes: size("buffers.l0a", buffers.l0a)?,
        l0b_bytes: size("buffers.l0b", buffers.l0b)?,
        l0c_bytes: size("buffers.l0c", buffers.l0c)?,
        bias_bytes: size("buffers.bias", buffers.bias)?,
        ub_bytes: size("buffers.ub", buffers.ub)?,
        l1_align: size("alignment.l1", alignment.l1)?,
        // One alignment serves both operands; the stricter one is right for both.
        l0_align: size("alignment.l0a", alignment.l0a.max(alignment.l0b))?,
        l0c_align: size("alignment.l0c", alignment.l0c)?,
        bias_align: size("alignment.bias", alignment.bias)?,
        ub_align: size("alignment.ub", alignment.ub)?,
        cube_cores: machine.cores.cube,
        vector_cores: machine.cores.vector,
        global_bytes: machine.memory.global_bytes,
        global_align: machine.dma.fast_alignment_bytes,
        ..MachineConfig::default()
    })
}

fn size(key: &str, value: u64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Failure::invalid(format!("{key} is {value}, more than this host can address")))
}

fn positive(key: &str, value: &str) -> Result<u64> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Failure::invalid(format!("option {key} is '{value}', a number from 1 is needed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_options_the_machine_is_the_builtin_one() {
        let options = Options::parse([]).unwrap();
        assert_eq!((options.machine_name.as_str(), options.config.cube_cores), ("davinci-like", 24));
        assert_eq!(options.config.global_bytes, 8 << 30);
        assert_eq!(options.lose_after, None);
    }

    #[test]
    fn numbers_are_read_and_the_last_value_of_a_key_wins() {
        let options = Options::parse([("threads", "3"), ("lose_after", "9"), ("threads", "2")]).unwrap();
        assert_eq!((options.config.host_threads, options.lose_after), (2, Some(9)));
    }

    #[test]
    fn bad_options_are_refused_with_what_is_known() {
        let refusal = |key, value| Options::parse([(key, value)]).unwrap_err().text;
        assert!(refusal("thread", "2").contains("threads"));
        for bad in ["0", "-1", "many", ""] {
            assert!(refusal("threads", bad).contains("a number from 1"), "{bad}");
        }
        assert!(refusal("machine", "no/such.yaml").contains("no/such.yaml"));
    }
}
