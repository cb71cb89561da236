//! Elementwise programs that are passed as numbers: one kernel serves them all, and so can ship compiled.
//!
//! The variant of devices that have no compiler. A thread computes one point: it loads what the program loads, goes
//! through its words one by one, and stores. That costs a few dozen instructions for each step where generated code
//! takes one; the numerics are those of generated code, since the same expressions stand in the cases of the switch.
//!
//! Values are 64 bits: integers widened, floats as their bits. A loaded element of half precision is an f32 with its own
//! bits above, so that moving it changes nothing. A word is `code | a << 9 | b << 15 | c << 21`, where `a`, `b` and `c`
//! are the numbers of earlier words, of inputs, of outputs or of axes.

use super::precompiled::refusal;
use super::program::{self, as_bits, binary, cast, comparison, unary};
use super::source::{KernelText, Language, Workspace, register};
use crate::cluster::{BinaryOp, Cluster, CompareOp, StepOp, UnaryOp, ValueId};
use crate::lower::{Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite_hal::{Access, DType, KernelSource, Scalar};
use std::fmt::Write;

/// What the kernel takes at most. Arguments must fit what OpenCL guarantees: 1024 bytes.
const MAX_INPUTS: usize = 6;
const MAX_OUTPUTS: usize = 4;
const MAX_AXES: usize = 6;
const MAX_SCALARS: usize = 3;
const MAX_WORDS: usize = 64;

/// Threads of a workgroup.
const THREADS: usize = 128;

/// Bytes of an argument that a program has no use for.
const UNUSED_BYTES: usize = 8;

/// What a word does. Register types stand for dtypes: half precision is f32, `bool` is u8.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Code {
    /// Stores word `a` to output `b`, in so many bytes.
    Store(usize),
    /// Loads an element of input `a`, of so many bytes.
    Load(usize),
    /// The 64 bits in the next two words, which it skips.
    Constant,
    /// The bits of scalar `a`.
    Scalar,
    /// The index along axis `a`.
    Index,
    /// One of `b` and `c`, by `a`.
    Select,
    /// A value from an element's bits, and back.
    FromBits(DType),
    ToBits(DType),
    /// The bits that a loaded element of half precision had.
    LoadedBits,
    /// To half precision, in an f32.
    Round(DType),
    Unary(UnaryOp, DType),
    Binary(BinaryOp, DType),
    Compare(CompareOp, DType),
    Cast(DType, DType),
}

/// Types of registers.
const REGISTERS: [DType; 10] = [
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::U32,
    DType::I32,
    DType::U64,
    DType::I64,
    DType::F32,
    DType::F64,
];

/// The dtype whose register a dtype's values have.
fn of_register(dtype: DType) -> DType {
    match dtype {
        DType::Bool => DType::U8,
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// Every code, by number.
fn codes() -> Vec<Code> {
    let mut codes = vec![Code::Constant, Code::Scalar, Code::Index, Code::Select, Code::LoadedBits];
    codes.extend([1, 2, 4, 8].map(Code::Load));
    codes.extend([1, 2, 4, 8].map(Code::Store));
    codes.extend([DType::F16, DType::BF16].map(Code::Round));
    codes.push(Code::Unary(UnaryOp::Not, DType::Bool));
    for dtype in DType::ALL {
        codes.extend([Code::FromBits(dtype), Code::ToBits(dtype)]);
    }
    for dtype in REGISTERS {
        let unary = UnaryOp::ALL.into_iter().filter(|op| op.accepts(dtype));
        codes.extend(unary.map(|op| Code::Unary(op, dtype)));
        let binary = BinaryOp::ALL.into_iter().filter(|op| op.accepts(dtype));
        codes.extend(binary.map(|op| Code::Binary(op, dtype)));
        codes.extend(CompareOp::ALL.map(|op| Code::Compare(op, dtype)));
        let targets = DType::ALL.into_iter().filter(|&to| to != dtype);
        codes.extend(targets.map(|to| Code::Cast(dtype, to)));
    }
    codes
}

/// The launch of a program.
pub(super) fn lower(
    language: Language,
    request: &LowerRequest<'_>,
    program: &Cluster,
) -> Result<Lowered, Unservable> {
    if program.points() == 0 || program.outputs.is_empty() {
        return Ok(Lowered::default());
    }
    let inputs: Vec<LaunchArg> = (0..program.inputs.len()).map(LaunchArg::Input).collect();
    let outputs: Vec<LaunchArg> = (0..program.outputs.len()).map(LaunchArg::Output).collect();
    let mut workspace = Workspace::default();
    let launch = launch(language, request, program, &inputs, &outputs, &mut workspace)?;
    Ok(Lowered { launches: vec![launch], workspace_bytes: workspace.len_bytes })
}

/// The launch of a program on these memories. Arguments without use lie in the workspace.
pub(super) fn launch(
    language: Language,
    request: &LowerRequest<'_>,
    program: &Cluster,
    inputs: &[LaunchArg],
    outputs: &[LaunchArg],
    workspace: &mut Workspace,
) -> Result<Launch, Unservable> {
    let reach = program::check(program, request)?;
    let in_place = program.inputs.iter().any(|view| {
        view.is_contiguous(&program.shape)
            && (0..outputs.len()).any(|n| program.output_dtype(n).size() == view.dtype.size())
    });
    let mut program = as_bits(program).unwrap_or_else(|| program.clone());
    program.collapse(None);
    for (what, count, most) in [
        ("inputs", program.inputs.len(), MAX_INPUTS),
        ("outputs", program.outputs.len(), MAX_OUTPUTS),
        ("axes", program.shape.len(), MAX_AXES),
        ("scalars", program.scalars.len(), MAX_SCALARS),
    ] {
        if count > most {
            return Err(too_large(count, what, most));
        }
    }
    let words = Encoder::encode(&program)?;
    let uses_f64 = program.steps.iter().any(|step| step.dtype == DType::F64);
    let name = if uses_f64 { "elementwise_f64_interpreted" } else { "elementwise_interpreted" };
    let mut text = KernelText::new(language, request, name);
    text.reaches(reach);
    text.in_place(true);
    if uses_f64 {
        text.uses(DType::F64);
    }
    let mut unused = || workspace.take(request.device, DType::U8, UNUSED_BYTES);
    for n in 0..MAX_INPUTS {
        let arg = inputs.get(n).copied().unwrap_or_else(&mut unused);
        text.buffer(&format!("in{n}"), arg, DType::U8, Access::Read);
    }
    for n in 0..MAX_OUTPUTS {
        let arg = outputs.get(n).copied().unwrap_or_else(&mut unused);
        text.buffer(&format!("out{n}"), arg, DType::U8, Access::Write);
    }
    for n in 0..MAX_SCALARS {
        let (arg, dtype) = match program.scalars.get(n) {
            Some(&dtype) if dtype.size() == 4 => (LaunchArg::Scalar(n), dtype),
            Some(dtype) => {
                return Err(refusal(format!("the interpreting kernel takes no scalar of {dtype}")));
            }
            None => (LaunchArg::Literal(Scalar::U32(0)), DType::U32),
        };
        text.bits_of_scalar(&format!("s{n}"), arg, dtype);
    }
    let points = program.points();
    text.number("points", points as i64)?;
    // Axes are counted from the innermost one, so that outer ones may be missing.
    let rank = program.shape.len();
    for axis in 1..MAX_AXES {
        let extent = rank.checked_sub(axis).map_or(1, |at| program.shape[at]);
        text.number(&format!("extent{axis}"), extent as i64)?;
    }
    for n in 0..MAX_INPUTS {
        let view = program.inputs.get(n);
        text.number(&format!("offset{n}"), view.map_or(0, |view| view.offset))?;
        for axis in 0..MAX_AXES {
            let at = rank.checked_sub(axis + 1);
            let stride = view.zip(at).map_or(0, |(view, at)| view.strides[at]);
            text.number(&format!("stride{n}_{axis}"), stride)?;
        }
    }
    text.number("words", words.len() as i64)?;
    for pair in 0..MAX_WORDS / 2 {
        let word = |at: usize| u64::from(words.get(at).copied().unwrap_or(0));
        text.word(&format!("code{pair}"), word(2 * pair) | word(2 * pair + 1) << 32);
    }
    text.push(&kernel(uses_f64));
    let mut launch = text.launch(points.div_ceil(THREADS), [THREADS, 1])?;
    match &mut launch.source {
        KernelSource::Text { signature, .. } | KernelSource::Binary { signature, .. } => {
            signature.in_place = in_place;
        }
        _ => {}
    }
    Ok(launch)
}

fn too_large(count: usize, what: &str, most: usize) -> Unservable {
    refusal(format!("the program has {count} {what}, but the interpreting kernel takes {most}"))
}

/// Writes words.
struct Encoder<'a> {
    program: &'a Cluster,
    codes: Vec<Code>,
    words: Vec<u32>,
    /// The word that holds a step's value.
    of_step: Vec<u32>,
}

impl<'a> Encoder<'a> {
    fn encode(program: &'a Cluster) -> Result<Vec<u32>, Unservable> {
        let of_step = vec![0; program.steps.len()];
        let mut encoder = Self { program, codes: codes(), words: Vec::new(), of_step };
        let live = program::live_steps(program);
        for id in (0..program.steps.len()).filter(|&id| live[id]) {
            encoder.of_step[id] = encoder.step(id);
        }
        for (output, &id) in program.outputs.iter().enumerate() {
            let bits = encoder.bits(id);
            let size = program.steps[id as usize].dtype.size();
            encoder.word(Code::Store(size), [bits, output as u32, 0]);
        }
        match encoder.words.len() {
            count if count > MAX_WORDS => Err(too_large(count, "words", MAX_WORDS)),
            _ => Ok(encoder.words),
        }
    }

    /// Adds a word, and gives its number.
    fn word(&mut self, code: Code, [a, b, c]: [u32; 3]) -> u32 {
        let number =
            self.codes.iter().position(|&own| own == code).expect("every code that is written is listed");
        // Beyond the limit numbers no longer fit, and the program is refused as a whole.
        let operand = |n: u32| n & (MAX_WORDS as u32 - 1);
        self.words.push(number as u32 | operand(a) << 9 | operand(b) << 15 | operand(c) << 21);
        self.words.len() as u32 - 1
    }

    fn step(&mut self, id: usize) -> u32 {
        let step = self.program.steps[id];
        let (dtype, own) = (step.dtype, of_register(step.dtype));
        let at = |encoder: &Self, id: ValueId| encoder.of_step[id as usize];
        let dtype_of = |encoder: &Self, id: ValueId| encoder.program.steps[id as usize].dtype;
        let value = match step.op {
            StepOp::Load(input) => {
                let bits = self.word(Code::Load(dtype.size()), [input, 0, 0]);
                return self.word(Code::FromBits(dtype), [bits, 0, 0]);
            }
            StepOp::Scalar(scalar) => {
                let bits = self.word(Code::Scalar, [scalar, 0, 0]);
                return self.word(Code::FromBits(dtype), [bits, 0, 0]);
            }
            StepOp::Constant(literal) => {
                let word = self.word(Code::Constant, [0; 3]);
                self.words.extend([literal.bits as u32, (literal.bits >> 32) as u32]);
                return self.word(Code::FromBits(literal.dtype), [word, 0, 0]);
            }
            StepOp::Index(axis) => {
                let innermost = self.program.shape.len() as u32 - 1 - axis;
                let index = self.word(Code::Index, [innermost, 0, 0]);
                return self.cast(DType::I64, dtype, index);
            }
            StepOp::Unary(op, a) => {
                let dtype = if op == UnaryOp::Not { dtype } else { own };
                self.word(Code::Unary(op, dtype), [at(self, a), 0, 0])
            }
            StepOp::Binary(op, a, b) => self.word(Code::Binary(op, own), [at(self, a), at(self, b), 0]),
            StepOp::Compare(op, a, b) => {
                let compared = of_register(dtype_of(self, a));
                return self.word(Code::Compare(op, compared), [at(self, a), at(self, b), 0]);
            }
            StepOp::Select(condition, a, b) => {
                return self.word(Code::Select, [at(self, condition), at(self, a), at(self, b)]);
            }
            StepOp::Cast(a) => return self.cast(dtype_of(self, a), dtype, at(self, a)),
            StepOp::Bitcast(a) => {
                let bits = self.bits(a);
                if dtype == DType::Bool {
                    let byte = self.word(Code::FromBits(DType::U8), [bits, 0, 0]);
                    return self.word(Code::Cast(DType::U8, DType::Bool), [byte, 0, 0]);
                }
                return self.word(Code::FromBits(dtype), [bits, 0, 0]);
            }
        };
        if own == dtype || dtype == DType::Bool {
            value
        } else {
            self.word(Code::Round(dtype), [value, 0, 0])
        }
    }

    fn cast(&mut self, from: DType, to: DType, a: u32) -> u32 {
        let own = of_register(from);
        // Either half precision is a value of f32 already.
        if from == to || own == to {
            return a;
        }
        self.word(Code::Cast(own, to), [a, 0, 0])
    }

    /// The bits that memory holds for a step's value.
    fn bits(&mut self, id: ValueId) -> u32 {
        let (step, at) = (self.program.steps[id as usize], self.of_step[id as usize]);
        let is_half = matches!(step.dtype, DType::F16 | DType::BF16);
        match step.op {
            StepOp::Load(_) if is_half => self.word(Code::LoadedBits, [at, 0, 0]),
            _ => self.word(Code::ToBits(step.dtype), [at, 0, 0]),
        }
    }
}

/// The kernel's body.
fn kernel(with_f64: bool) -> String {
    let mut text = String::from("\nKERNEL(THREADS, 1) void NAME(PARAMETERS) {\n");
    text.push_str("    const INDEX point = GROUP * THREADS + LOCAL_X;\n    if (point >= points) return;\n");
    text.push_str("    INDEX rest = point;\n");
    for axis in 0..MAX_AXES {
        if axis + 1 < MAX_AXES {
            let _ = writeln!(text, "    const INDEX i{axis} = rest % extent{};", axis + 1);
            let _ = writeln!(text, "    rest /= extent{};", axis + 1);
        } else {
            let _ = writeln!(text, "    const INDEX i{axis} = rest;");
        }
    }
    let pairs: Vec<String> = (0..MAX_WORDS / 2).map(|pair| format!("code{pair}")).collect();
    let _ = writeln!(text, "    const u64 code[{}] = {{{}}};", MAX_WORDS / 2, pairs.join(", "));
    let _ = writeln!(text, "    u64 v[{MAX_WORDS}];");
    text.push_str("    for (i32 at = 0; at < words; at++) {\n");
    text.push_str("        const u32 word = (u32)(code[at / 2] >> (at % 2 * 32));\n");
    text.push_str("        const i32 na = (i32)(word >> 9 & 63), nb = (i32)(word >> 15 & 63), nc = (i32)(word >> 21 & 63);\n");
    text.push_str("        const i32 own = at;\n        u64 x = 0;\n        switch ((i32)(word & 511)) {\n");
    for (number, code) in codes().into_iter().enumerate() {
        if with_f64 || !code.involves_f64() {
            let _ = writeln!(text, "        case {number}: {{ {} }} break;", code.text());
        }
    }
    text.push_str("        }\n        v[own] = x;\n    }\n}\n");
    text
}

impl Code {
    fn involves_f64(self) -> bool {
        match self {
            Self::FromBits(dtype) | Self::ToBits(dtype) | Self::Unary(_, dtype) => dtype == DType::F64,
            Self::Binary(_, dtype) | Self::Compare(_, dtype) => dtype == DType::F64,
            Self::Cast(from, to) => [from, to].contains(&DType::F64),
            _ => false,
        }
    }

    /// The statements of a case: words `na`, `nb` and `nc` become `x`.
    fn text(self) -> String {
        match self {
            Self::Store(size) => {
                let mut text = String::from("switch (nb) { ");
                for n in 0..MAX_OUTPUTS {
                    let _ = write!(
                        text,
                        "case {n}: ((GLOBAL u{0}*)out{n})[point] = (u{0})v[na]; break; ",
                        8 * size
                    );
                }
                text + "}"
            }
            Self::Load(size) => {
                let mut text = String::from("switch (na) { ");
                for n in 0..MAX_INPUTS {
                    let place: String =
                        (0..MAX_AXES).map(|axis| format!(" + i{axis} * stride{n}_{axis}")).collect();
                    let _ = write!(
                        text,
                        "case {n}: x = (u64)((const GLOBAL u{}*)in{n})[offset{n}{place}]; break; ",
                        8 * size
                    );
                }
                text + "}"
            }
            Self::Constant => {
                let half = |ahead: i32| {
                    format!("(code[(at + {ahead}) / 2] >> ((at + {ahead}) % 2 * 32) & 0xffffffffu)")
                };
                format!("x = {} | {} << 32; at += 2;", half(1), half(2))
            }
            Self::Scalar => {
                let last = MAX_SCALARS - 1;
                let chain: String = (0..last).map(|n| format!("na == {n} ? s{n} : ")).collect();
                format!("x = (u64)({chain}s{last});")
            }
            Self::Index => {
                let last = MAX_AXES - 1;
                let chain: String = (0..last).map(|axis| format!("na == {axis} ? i{axis} : ")).collect();
                format!("x = (u64)(i64)({chain}i{last});")
            }
            Self::Select => "x = v[na] != 0 ? v[nb] : v[nc];".to_owned(),
            Self::LoadedBits => "x = v[na] >> 32;".to_owned(),
            Self::FromBits(dtype) => match dtype {
                DType::F16 | DType::BF16 => {
                    format!("x = (u64)f32_to_bits({dtype}_from_bits((u16)v[na])) | (v[na] & 0xffffu) << 32;")
                }
                DType::F32 => "x = v[na] & 0xffffffffu;".to_owned(),
                DType::F64 => "x = v[na];".to_owned(),
                _ => put(dtype, &format!("({})v[na]", register(dtype))),
            },
            Self::ToBits(dtype) => match dtype {
                DType::F16 | DType::BF16 => format!("x = (u64){dtype}_to_bits({});", take(dtype, "v[na]")),
                _ => "x = v[na];".to_owned(),
            },
            Self::Round(dtype) => put(dtype, &format!("{dtype}_round({})", take(dtype, "v[na]"))),
            Self::Unary(op, dtype) => {
                let t = register(dtype);
                format!("const {t} p = {}; {}", take(dtype, "v[na]"), put(dtype, &unary(op, dtype, "p")))
            }
            Self::Binary(op, dtype) => {
                let t = register(dtype);
                let (p, q) = (take(dtype, "v[na]"), take(dtype, "v[nb]"));
                format!("const {t} p = {p}, q = {q}; {}", put(dtype, &binary(op, dtype, "p", "q")))
            }
            Self::Compare(op, dtype) => {
                let sign = comparison(op);
                format!("x = (u64)({} {sign} {});", take(dtype, "v[na]"), take(dtype, "v[nb]"))
            }
            Self::Cast(from, to) => {
                let t = register(from);
                format!("const {t} p = {}; {}", take(from, "v[na]"), put(to, &cast(from, to, "p")))
            }
        }
    }
}

/// A register's value from 64 bits.
fn take(dtype: DType, bits: &str) -> String {
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 => format!("f32_from_bits((u32){bits})"),
        DType::F64 => format!("f64_from_bits({bits})"),
        _ => format!("({}){bits}", register(dtype)),
    }
}

/// The statement that makes a register's value 64 bits.
fn put(dtype: DType, value: &str) -> String {
    let t = register(dtype);
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 => format!("const {t} r = {value}; x = (u64)f32_to_bits(r);"),
        DType::F64 => format!("const {t} r = {value}; x = f64_to_bits(r);"),
        _ if dtype.is_signed() => format!("const {t} r = {value}; x = (u64)(i64)r;"),
        _ => format!("const {t} r = {value}; x = (u64)r;"),
    }
}
