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

/// Most host threads: beyond it, the blocks of no launch have enough work for each.
const MAX_THREADS: u64 = 1024;

/// Most bytes that the on-chip memories of all cores may have: blocks that wait for each other need all at once.
const MAX_LOCAL_BYTES: u64 = 16 << 30;

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
        let (mut file, mut threads, mut lose_after) = (None, None, None);
        for (key, value) in pairs {
            match key {
                "machine" => {
                    machine = Machine::from_file(Path::new(value)).map_err(|error| {
                        Failure::new(plugin::STATUS_BAD_FORMAT, format!("option machine: {error}"))
                    })?;
                    file = Some(value);
                }
                "threads" => threads = Some(count_of_threads(key, value)?),
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
        let mut config = configure(&machine).map_err(|failure| {
            let file = file.unwrap_or("the built-in machine");
            Failure { text: format!("option machine: {file}: {}", failure.text), ..failure }
        })?;
        if let Some(threads) = threads {
            config.host_threads = threads;
        }
        Ok(Self { machine_name: machine.name, config, lose_after })
    }
}

/// What the functional machine needs of the description.
fn configure(machine: &Machine) -> Result<MachineConfig> {
    let (buffers, alignment) = (&machine.buffers, &machine.alignment);
    let cube = [buffers.l1, buffers.l0a, buffers.l0b, buffers.l0c, buffers.bias];
    check_local_bytes("cube", machine.cores.cube, cube.iter().sum())?;
    check_local_bytes("vector", machine.cores.vector, buffers.ub)?;
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

fn check_local_bytes(kind: &str, cores: u32, bytes: u64) -> Result<()> {
    if u64::from(cores).saturating_mul(bytes) <= MAX_LOCAL_BYTES {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{cores} {kind} cores with {bytes} bytes of buffers each are more than {MAX_LOCAL_BYTES} bytes in all; \
         describe fewer cores or smaller buffers"
    )))
}

fn size(key: &str, value: u64) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Failure::invalid(format!("{key} is {value}, more than this host can address")))
}

fn count_of_threads(key: &str, value: &str) -> Result<usize> {
    let count = value.parse().ok().filter(|count| (1..=MAX_THREADS).contains(count));
    count.and_then(|count| usize::try_from(count).ok()).ok_or_else(|| {
        Failure::invalid(format!("option {key} is '{value}', a number from 1 to {MAX_THREADS} is needed"))
    })
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
    fn a_machine_that_the_host_cannot_hold_is_refused_with_its_file() {
        let file = std::env::temp_dir().join(format!("halite-npu-many-{}.yaml", std::process::id()));
        let text = Machine::builtin_yaml().replace("  vector: 48", "  vector: 60000");
        std::fs::write(&file, text.replace("  ub: 192 KiB", "  ub: 1 MiB")).unwrap();
        let refusal = Options::parse([("machine", file.to_str().unwrap())]).map(|options| options.config);
        std::fs::remove_file(&file).unwrap();
        let text = refusal.unwrap_err().text;
        assert!(text.contains(file.to_str().unwrap()) && text.contains("60000 vector cores"), "{text}");
    }

    #[test]
    fn bad_options_are_refused_with_what_is_known() {
        let refusal = |key, value| Options::parse([(key, value)]).unwrap_err().text;
        assert!(refusal("thread", "2").contains("threads"));
        for bad in ["0", "-1", "many", "", "1025", "18446744073709551615"] {
            let text = refusal("threads", bad);
            assert!(text.contains("threads") && text.contains("a number from 1 to 1024"), "{bad}: {text}");
        }
        assert!(refusal("lose_after", "0").contains("a number from 1 is needed"));
        assert!(refusal("machine", "no/such.yaml").contains("no/such.yaml"));
    }
}
