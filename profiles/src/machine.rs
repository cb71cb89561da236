//! The machine description: the second schema, in which the file *is* the machine.
//!
//! It says what the emulated NPU has: cores, buffers, alignments, rates and latencies. There is no
//! inheritance and nothing is optional but where a default is documented, so a file can be read on its own.
//! Every section has a `source` that says where its figures come from.
//!
//! Devices do not report the sizes of their buffers, so Halite's own NPU kernels are built for those of the built-in
//! machine, and for its alignments. A machine with smaller buffers or coarser alignments runs programs that were written
//! for it; the first of Halite's that needs more fails when it runs, as a fault such as `outside UB`.

use serde::Serialize;

use crate::error::Result;
use crate::location::BUILTIN_PREFIX;
use crate::search::read_text;
use crate::units::Unit;
use crate::yaml::{self, Node, Section};

const BUILTIN_FILE: &str = "machine/davinci-like.yaml";
const BUILTIN_TEXT: &str = include_str!("../builtin/machine/davinci-like.yaml");
const DEFAULT_GLOBAL_BYTES: u64 = 8 << 30;

/// An NPU with separate matrix ("cube") and vector cores.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Machine {
    /// The machine's name; the emulator's device name shows it.
    pub name: String,
    /// How many cores there are.
    pub cores: Cores,
    /// The clock of every core, in hertz.
    pub clock_hz: f64,
    /// The matrix unit of a cube core.
    pub cube: Cube,
    /// The vector unit of a vector core.
    pub vector: VectorUnit,
    /// On-chip memories of one core, in bytes.
    pub buffers: Buffers,
    /// Address alignments, in bytes; each is a power of two.
    pub alignment: Alignments,
    /// Memory that all cores share.
    pub memory: SharedMemory,
    /// The direct memory access engines.
    pub dma: Dma,
    /// Bandwidths of one cube core. Vector cores share the same totals: `cores.cube` times these.
    pub rates: Rates,
    /// Fixed costs.
    pub overheads: Overheads,
    /// Flags between two pipes of a core.
    pub flags: Flags,
}

/// How many cores a machine has: from 1 to 65536 of each kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cores {
    /// Cores with a matrix unit.
    pub cube: u32,
    /// Cores with a vector unit.
    pub vector: u32,
    /// Where the figures come from.
    pub source: String,
}

/// The matrix unit: `m * n * k` multiply-adds a cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cube {
    /// Rows of the result in one step.
    pub m: u32,
    /// Columns of the result in one step.
    pub n: u32,
    /// Depth of one step in f16.
    pub k_f16: u32,
    /// Depth of one step in bf16.
    pub k_bf16: u32,
    /// Depth of one step in i8.
    pub k_i8: u32,
    /// Depth of one step in f32.
    pub k_f32: u32,
    /// Where the figures come from.
    pub source: String,
}

/// The vector unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct VectorUnit {
    /// Bytes of one operand that are processed in a cycle.
    pub bytes_per_cycle: f64,
    /// Bytes that one repeat of an instruction covers.
    pub repeat_bytes: u64,
    /// Latency of addition (and of everything that is as simple), in cycles.
    pub add_cycles: f64,
    /// Latency of multiplication, in cycles.
    pub mul_cycles: f64,
    /// Latency of the exponential, in cycles.
    pub exp_cycles: f64,
    /// Latency of division, in cycles.
    pub div_cycles: f64,
    /// Where the figures come from.
    pub source: String,
}

/// Sizes of one core's memories, in bytes; each has at most 64 MiB. Halite's own kernels need at least those of
/// [`Machine::builtin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Buffers {
    /// L1, between global memory and L0.
    pub l1: u64,
    /// Left operand of the cube.
    pub l0a: u64,
    /// Right operand of the cube.
    pub l0b: u64,
    /// Accumulator of the cube.
    pub l0c: u64,
    /// Unified buffer of the vector unit.
    pub ub: u64,
    /// Bias table of the cube.
    pub bias: u64,
    /// Where the figures come from.
    pub source: String,
}

/// Alignment of addresses in each memory, in bytes; at most 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Alignments {
    /// L1.
    pub l1: u64,
    /// Left operand.
    pub l0a: u64,
    /// Right operand.
    pub l0b: u64,
    /// Accumulator.
    pub l0c: u64,
    /// Unified buffer.
    pub ub: u64,
    /// Bias table.
    pub bias: u64,
    /// Where the figures come from.
    pub source: String,
}

/// Memory that all cores share, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SharedMemory {
    /// Global memory; 8 GiB if the file does not say.
    pub global_bytes: u64,
    /// Second-level cache.
    pub l2_bytes: u64,
    /// Where the figures come from.
    pub source: String,
}

/// How the direct memory access engines move data, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Dma {
    /// A burst is rounded up to a multiple of this.
    pub burst_bytes: u64,
    /// Transfers from this size on reach the full bandwidth.
    pub efficient_bytes: u64,
    /// Global addresses with this alignment are fast.
    pub fast_alignment_bytes: u64,
    /// Where the figures come from.
    pub source: String,
}

/// Bandwidths of one cube core, in bytes per cycle.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rates {
    /// Global memory.
    pub global: f64,
    /// Reading what lies in L2.
    pub l2_read: f64,
    /// Writing to L2.
    pub l2_write: f64,
    /// L1 to L0A.
    pub l1_to_l0a: f64,
    /// L1 to L0B.
    pub l1_to_l0b: f64,
    /// L0C to global memory or L1.
    pub fix: f64,
    /// Where the figures come from.
    pub source: String,
}

/// Fixed costs, in cycles, and the launch, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Overheads {
    /// Each cube step in MTE1.
    pub mte1_step_cycles: f64,
    /// Each cube instruction.
    pub cube_issue_cycles: f64,
    /// Each tile in FIX.
    pub fix_tile_cycles: f64,
    /// Each load from global memory.
    pub load_latency_cycles: f64,
    /// Each launch, in seconds.
    pub launch_s: f64,
    /// Where the figures come from.
    pub source: String,
}

/// Flags, with which pipes wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Flags {
    /// Flags per ordered pair of pipes.
    pub per_pipe_pair: u32,
    /// Where the figures come from.
    pub source: String,
}

impl Machine {
    /// The default machine, in the shape of a DaVinci core.
    pub fn builtin() -> Self {
        let file = format!("{BUILTIN_PREFIX}{BUILTIN_FILE}");
        Self::from_yaml(BUILTIN_TEXT, &file).expect("the built-in machine is tested to load")
    }

    /// The text of the default machine's file, to start a file of one's own from.
    pub fn builtin_yaml() -> &'static str {
        BUILTIN_TEXT
    }

    /// Reads a description; `file_name` is what errors name.
    ///
    /// # Errors
    ///
    /// The first key that is unknown, missing or wrong, with file and line.
    pub fn from_yaml(text: &str, file_name: &str) -> Result<Self> {
        machine(&yaml::parse(text, file_name)?)
    }

    /// Reads a description from a file.
    ///
    /// # Errors
    ///
    /// Like [`Machine::from_yaml`], and a file that cannot be read.
    pub fn from_file(path: &std::path::Path) -> Result<Self> {
        let text = read_text(path, "name an existing machine description")?;
        Self::from_yaml(&text, &path.display().to_string())
    }

    /// Multiply-adds in one cycle of all cubes, in f16.
    pub fn multiply_adds_per_cycle_f16(&self) -> u64 {
        let cube = &self.cube;
        u64::from(self.cores.cube) * u64::from(cube.m) * u64::from(cube.n) * u64::from(cube.k_f16)
    }
}

/// A section of the file whose keys are all required.
struct Part<'a>(Section<'a>);

impl<'a> Part<'a> {
    fn open(top: &Section<'a>, key: &'static str, example: &'static str, accepted: &[&str]) -> Result<Self> {
        top.required(key, example, |node, path| {
            let accepted: Vec<&str> = accepted.iter().copied().chain(["source"]).collect();
            Section::open(node, path, path, &accepted, example).map(Part)
        })
    }

    fn count(&self, key: &'static str) -> Result<u32> {
        self.0.required(key, "16", Node::count)
    }

    fn cores(&self, key: &'static str) -> Result<u32> {
        let expected = "an integer from 1 to 65536";
        self.0.required(key, "24", |node, key| node.count_up_to(65_536, key, expected, "24"))
    }

    /// A memory of one core.
    fn buffer(&self, key: &'static str) -> Result<u64> {
        self.0.required(key, "512 KiB", Node::on_chip_bytes)
    }

    fn bytes(&self, key: &'static str) -> Result<u64> {
        self.0.required(key, "512 KiB", Node::positive_bytes)
    }

    fn alignment(&self, key: &'static str) -> Result<u64> {
        self.0.required(key, "32 B", Node::alignment)
    }

    fn rate(&self, key: &'static str) -> Result<f64> {
        self.0.required(key, "128 B/cycle", |node, key| node.positive_quantity(key, Unit::BytesPerCycle))
    }

    fn cycles(&self, key: &'static str) -> Result<f64> {
        self.0.required(key, "45 cycles", |node, key| node.quantity(key, Unit::Cycles))
    }

    fn source(&self) -> Result<String> {
        let example = "vendor's documentation, or: chosen";
        self.0.required("source", example, |node, key| node.text(key, example)).map(str::to_owned)
    }
}

fn machine(node: &Node) -> Result<Machine> {
    const KEYS: [&str; 12] = [
        "name",
        "cores",
        "clock",
        "cube",
        "vector",
        "buffers",
        "alignment",
        "memory",
        "dma",
        "rates",
        "overheads",
        "flags",
    ];
    let top = Section::open(node, "", "the machine", &KEYS, "name: my-npu")?;
    Ok(Machine {
        name: top.required("name", "my-npu", |node, key| node.text(key, "my-npu"))?.to_owned(),
        cores: cores(&top)?,
        clock_hz: top.required("clock", "1.85 GHz", |node, key| node.positive_quantity(key, Unit::Hertz))?,
        cube: cube(&top)?,
        vector: vector(&top)?,
        buffers: buffers(&top)?,
        alignment: alignment(&top)?,
        memory: memory(&top)?,
        dma: dma(&top)?,
        rates: rates(&top)?,
        overheads: overheads(&top)?,
        flags: flags(&top)?,
    })
}

fn cores(top: &Section<'_>) -> Result<Cores> {
    let part = Part::open(top, "cores", "{ cube: 24, vector: 48, source: chosen }", &["cube", "vector"])?;
    Ok(Cores { cube: part.cores("cube")?, vector: part.cores("vector")?, source: part.source()? })
}

fn cube(top: &Section<'_>) -> Result<Cube> {
    let keys = ["m", "n", "k_f16", "k_bf16", "k_i8", "k_f32"];
    let part = Part::open(top, "cube", "{ m: 16, n: 16, k_f16: 16, ... }", &keys)?;
    Ok(Cube {
        m: part.count("m")?,
        n: part.count("n")?,
        k_f16: part.count("k_f16")?,
        k_bf16: part.count("k_bf16")?,
        k_i8: part.count("k_i8")?,
        k_f32: part.count("k_f32")?,
        source: part.source()?,
    })
}

fn vector(top: &Section<'_>) -> Result<VectorUnit> {
    let keys = ["rate", "repeat", "add", "mul", "exp", "div"];
    let part = Part::open(top, "vector", "{ rate: 128 B/cycle, repeat: 256 B, ... }", &keys)?;
    Ok(VectorUnit {
        bytes_per_cycle: part.rate("rate")?,
        repeat_bytes: part.bytes("repeat")?,
        add_cycles: part.cycles("add")?,
        mul_cycles: part.cycles("mul")?,
        exp_cycles: part.cycles("exp")?,
        div_cycles: part.cycles("div")?,
        source: part.source()?,
    })
}

fn buffers(top: &Section<'_>) -> Result<Buffers> {
    let keys = ["l1", "l0a", "l0b", "l0c", "ub", "bias"];
    let part = Part::open(top, "buffers", "{ l1: 512 KiB, l0a: 64 KiB, ... }", &keys)?;
    Ok(Buffers {
        l1: part.buffer("l1")?,
        l0a: part.buffer("l0a")?,
        l0b: part.buffer("l0b")?,
        l0c: part.buffer("l0c")?,
        ub: part.buffer("ub")?,
        bias: part.buffer("bias")?,
        source: part.source()?,
    })
}

fn alignment(top: &Section<'_>) -> Result<Alignments> {
    let keys = ["l1", "l0a", "l0b", "l0c", "ub", "bias"];
    let part = Part::open(top, "alignment", "{ l1: 32 B, l0a: 512 B, ... }", &keys)?;
    Ok(Alignments {
        l1: part.alignment("l1")?,
        l0a: part.alignment("l0a")?,
        l0b: part.alignment("l0b")?,
        l0c: part.alignment("l0c")?,
        ub: part.alignment("ub")?,
        bias: part.alignment("bias")?,
        source: part.source()?,
    })
}

fn memory(top: &Section<'_>) -> Result<SharedMemory> {
    let part =
        Part::open(top, "memory", "{ global: 8 GiB, l2: 192 MiB, source: chosen }", &["global", "l2"])?;
    Ok(SharedMemory {
        global_bytes: part.0.optional("global", Node::positive_bytes)?.unwrap_or(DEFAULT_GLOBAL_BYTES),
        l2_bytes: part.bytes("l2")?,
        source: part.source()?,
    })
}

fn dma(top: &Section<'_>) -> Result<Dma> {
    let keys = ["burst", "efficient", "fast_alignment"];
    let part = Part::open(top, "dma", "{ burst: 32 B, efficient: 16 KiB, ... }", &keys)?;
    Ok(Dma {
        burst_bytes: part.alignment("burst")?,
        efficient_bytes: part.bytes("efficient")?,
        fast_alignment_bytes: part.alignment("fast_alignment")?,
        source: part.source()?,
    })
}

fn rates(top: &Section<'_>) -> Result<Rates> {
    let keys = ["global", "l2_read", "l2_write", "l1_to_l0a", "l1_to_l0b", "fix"];
    let part = Part::open(top, "rates", "{ global: 32 B/cycle, l2_read: 110 B/cycle, ... }", &keys)?;
    Ok(Rates {
        global: part.rate("global")?,
        l2_read: part.rate("l2_read")?,
        l2_write: part.rate("l2_write")?,
        l1_to_l0a: part.rate("l1_to_l0a")?,
        l1_to_l0b: part.rate("l1_to_l0b")?,
        fix: part.rate("fix")?,
        source: part.source()?,
    })
}

fn overheads(top: &Section<'_>) -> Result<Overheads> {
    let keys = ["mte1_step", "cube_issue", "fix_tile", "load_latency", "launch"];
    let part = Part::open(top, "overheads", "{ mte1_step: 45 cycles, launch: 5 us, ... }", &keys)?;
    Ok(Overheads {
        mte1_step_cycles: part.cycles("mte1_step")?,
        cube_issue_cycles: part.cycles("cube_issue")?,
        fix_tile_cycles: part.cycles("fix_tile")?,
        load_latency_cycles: part.cycles("load_latency")?,
        launch_s: part.0.required("launch", "5 us", |node, key| node.quantity(key, Unit::Seconds))?,
        source: part.source()?,
    })
}

fn flags(top: &Section<'_>) -> Result<Flags> {
    let part = Part::open(top, "flags", "{ per_pipe_pair: 8, source: chosen }", &["per_pipe_pair"])?;
    Ok(Flags { per_pipe_pair: part.count("per_pipe_pair")?, source: part.source()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_machine_has_the_documented_figures() {
        let machine = Machine::builtin();
        assert_eq!(machine.name, "davinci-like");
        assert_eq!((machine.cores.cube, machine.cores.vector), (24, 48));
        assert_eq!(machine.clock_hz, 1.85e9);
        let cube = &machine.cube;
        assert_eq!((cube.m, cube.n), (16, 16));
        assert_eq!((cube.k_f16, cube.k_bf16, cube.k_i8, cube.k_f32), (16, 16, 32, 4));
        let buffers = &machine.buffers;
        assert_eq!(
            [buffers.l1, buffers.l0a, buffers.l0b, buffers.l0c, buffers.ub],
            [524_288, 65_536, 65_536, 131_072, 196_608]
        );
        let alignment = &machine.alignment;
        assert_eq!(
            [alignment.ub, alignment.l1, alignment.l0a, alignment.l0b, alignment.l0c, alignment.bias],
            [32, 32, 512, 512, 64, 64]
        );
        let rates = &machine.rates;
        assert_eq!(
            [rates.global, rates.l2_read, rates.l2_write, rates.l1_to_l0a, rates.l1_to_l0b],
            [32.0, 110.0, 86.0, 170.0, 120.0]
        );
        let vector = &machine.vector;
        assert_eq!((vector.bytes_per_cycle, vector.repeat_bytes), (128.0, 256));
        assert_eq!(
            [vector.add_cycles, vector.mul_cycles, vector.exp_cycles, vector.div_cycles],
            [6.0, 7.0, 12.0, 13.0]
        );
        assert_eq!((machine.memory.global_bytes, machine.memory.l2_bytes), (8 << 30, 192 << 20));
        assert_eq!(
            (machine.dma.burst_bytes, machine.dma.efficient_bytes, machine.dma.fast_alignment_bytes),
            (32, 16_384, 512)
        );
        assert_eq!(machine.overheads.mte1_step_cycles, 45.0);
        assert_eq!(machine.flags.per_pipe_pair, 8);
        assert_eq!(machine.multiply_adds_per_cycle_f16(), 24 * 4096);
    }

    #[test]
    fn global_memory_defaults_to_eight_gib() {
        let text = Machine::builtin_yaml().replace("  global: 8 GiB\n", "");
        assert_ne!(text, Machine::builtin_yaml());
        let machine = Machine::from_yaml(&text, "npu.yaml");
        assert_eq!(machine.map(|machine| machine.memory.global_bytes), Ok(8 << 30));
    }

    #[test]
    fn wrong_descriptions_are_named_with_their_line() {
        for (from, to, expected) in [
            ("  l0a: 64 KiB", "  l0d: 64 KiB", "unknown key 'l0d' in buffers; did you mean 'l0a'?"),
            ("  l0a: 64 KiB\n", "", "buffers has no key 'l0a'; add 'l0a: 512 KiB'"),
            (
                "  l1: 512 KiB",
                "  l1: 512 Kib",
                "buffers.l1: '512 Kib' has the unit 'Kib', which is not a number of bytes; did you mean 'KiB'?",
            ),
            (
                "  l1: 512 KiB",
                "  l1: 0 B",
                "buffers.l1: '0 B' is zero; write a number of bytes such as '512 KiB' (units: B, KB, MB, GB, TB, \
                 KiB, MiB, GiB, TiB)",
            ),
            (
                "  l0c: 64 B",
                "  l0c: 48 B",
                "alignment.l0c: '48 B' is not a power of two; write a number of bytes such as '512 KiB' (units: \
                 B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)",
            ),
            (
                "  ub: 192 KiB",
                "  ub: 192 GiB",
                "buffers.ub: '192 GiB' is more than 64 MiB, the most that an on-chip memory may have; write a \
                 number of bytes such as '512 KiB' (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)",
            ),
            (
                "  l0c: 64 B",
                "  l0c: 1 GiB",
                "alignment.l0c: '1 GiB' is more than 1 MiB, the most that an alignment may be; write a number of \
                 bytes such as '512 KiB' (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)",
            ),
            (
                "  cube: 24",
                "  cube: 65537",
                "cores.cube is the number 65537, expected an integer from 1 to 65536; write for example '24'",
            ),
            (
                "clock: 1.85 GHz",
                "clock: 1.85 GB",
                "clock: '1.85 GB' has the unit 'GB', which is not a frequency; use one of Hz, kHz, MHz, GHz",
            ),
            (
                "  cube: 24",
                "  cube: many",
                "cores.cube is the text 'many', expected an integer from 1 to 65536; write for example '24'",
            ),
            (
                "  add: 6 cycles",
                "  add: 6",
                "vector.add: '6' has no unit; write a number of cycles such as '45 cycles' (units: cycles, cycle)",
            ),
        ] {
            let text = Machine::builtin_yaml();
            let line =
                text[..text.find(from).expect("the built-in file has the line")].matches('\n').count() + 1;
            let changed = text.replacen(from, to, 1);
            let message = Machine::from_yaml(&changed, "npu.yaml").map_err(|error| error.to_string());
            // A missing key is reported where its section begins.
            let line = if to.is_empty() {
                message.as_ref().err().and_then(|m| m.split(':').nth(1)?.parse().ok())
            } else {
                Some(line)
            };
            assert_eq!(message, Err(format!("npu.yaml:{}: {expected}", line.unwrap_or(0))));
        }
    }

    #[test]
    fn on_chip_memories_and_alignments_are_taken_up_to_their_limits() {
        let text = Machine::builtin_yaml()
            .replacen("  ub: 192 KiB", "  ub: 64 MiB", 1)
            .replacen("  l0c: 64 B", "  l0c: 1 MiB", 1)
            .replacen("  cube: 24", "  cube: 65536", 1);
        let machine = Machine::from_yaml(&text, "npu.yaml").unwrap();
        assert_eq!(
            (machine.buffers.ub, machine.alignment.l0c, machine.cores.cube),
            (64 << 20, 1 << 20, 65536)
        );
    }

    #[test]
    fn a_damaged_or_empty_description_is_an_error() {
        for (text, expected) in [
            ("", "npu.yaml:1: the file is empty; write at least 'name: NAME'"),
            (
                "name: x\n",
                "npu.yaml:1: the file has no key 'cores'; add 'cores: { cube: 24, vector: 48, source: chosen }'",
            ),
            (
                "cube\n",
                "npu.yaml:1: the machine is the text 'cube', expected a map; write for example 'name: my-npu'",
            ),
        ] {
            let message = Machine::from_yaml(text, "npu.yaml").map_err(|error| error.to_string());
            assert_eq!(message, Err(expected.to_owned()));
        }
    }
}
