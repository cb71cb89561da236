//! What all families share: the source text of a kernel, its arguments, and the finished launch.
//!
//! A program is `defines + prelude + numeric.cl + body`. The preludes give the two languages one dialect; the defines
//! carry what is fixed for a launch (sizes, types, generated expressions).

use super::precompiled;
use crate::lower::{Launch, LaunchArg, LowerRequest, Unservable};
use halite_hal::{Access, ArgType, DType, DeviceInfo, KernelSource, Scalar, Signature};
use std::fmt::{Display, Write};

/// A language that drivers compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// OpenCL C 1.2.
    OpenClC,
    /// CUDA C, as NVRTC takes it.
    CudaC,
    /// CUDA C of kernels that serve all sizes, compiled when this crate was made: see `precompiled.rs`.
    Ptx,
    /// The same kernels as text, for tests of what they compute.
    #[cfg(test)]
    GeneralOpenClC,
    /// The text that the shipped code is made of.
    #[cfg(test)]
    GeneralCudaC,
}

impl Language {
    /// Those that are compiled on the machine.
    pub(super) const ALL: [Self; 2] = [Self::OpenClC, Self::CudaC];

    /// The kernel format.
    pub(super) const fn format(self) -> &'static str {
        match self {
            Self::OpenClC => "opencl-c",
            Self::CudaC => "cuda-c",
            Self::Ptx => "ptx",
            #[cfg(test)]
            Self::GeneralOpenClC => "opencl-c",
            #[cfg(test)]
            Self::GeneralCudaC => "cuda-c",
        }
    }

    /// Whether a kernel's text may depend on nothing but its name.
    pub(super) const fn is_general(self) -> bool {
        !matches!(self, Self::OpenClC | Self::CudaC)
    }

    fn is_opencl(self) -> bool {
        self.format() == Self::OpenClC.format()
    }

    fn prelude(self) -> &'static str {
        if self.is_opencl() { include_str!("prelude.cl") } else { include_str!("prelude.cu") }
    }
}

/// Threads of a workgroup where a profile does not say.
const DEFAULT_THREADS: usize = 64;

/// Axes of sliding windows in a text that serves all sizes.
const MAX_WINDOW_AXES: usize = 3;

/// The largest reach, in elements, that 32-bit indices serve. A quarter of their range, so that the end of a row of
/// tiles may lie beyond the end of the data.
const NARROW_REACH: i64 = 1 << 29;

/// Bytes that pieces of a workspace are aligned to at least.
const WORKSPACE_ALIGNMENT: u64 = 256;

/// The type of elements in memory.
pub(super) const fn storage(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "u8",
        DType::F16 | DType::BF16 => "u16",
        other => other.name(),
    }
}

/// The type of values in registers.
pub(super) const fn register(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "u8",
        DType::F16 | DType::BF16 => "f32",
        other => other.name(),
    }
}

/// A register's value from an element in memory.
pub(super) fn from_storage(dtype: DType, element: &str) -> String {
    match dtype {
        DType::F16 | DType::BF16 => format!("{dtype}_from_bits({element})"),
        _ => element.to_owned(),
    }
}

/// An element for memory from a register's value.
pub(super) fn to_storage(dtype: DType, value: &str) -> String {
    match dtype {
        DType::F16 | DType::BF16 => format!("{dtype}_to_bits({value})"),
        _ => value.to_owned(),
    }
}

/// The type in which sums and products of elements are accumulated: f32 for half precision, unsigned (which wraps) for
/// integers.
pub(super) const fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        DType::F16 | DType::BF16 | DType::F32 => DType::F32,
        DType::I64 | DType::U64 => DType::U64,
        _ => DType::U32,
    }
}

/// The unsigned type of as many bytes, in which elements are moved as bits.
pub(super) const fn bits_dtype(dtype: DType) -> DType {
    match dtype.size() {
        1 => DType::U8,
        2 => DType::U16,
        4 => DType::U32,
        _ => DType::U64,
    }
}

/// A constant of the register type that stands for `bits` of `dtype`.
pub(super) fn literal(dtype: DType, bits: u64) -> String {
    match dtype {
        DType::F16 => format!("f32_from_bits(0x{:x}u)", half::f16::from_bits(bits as u16).to_f32().to_bits()),
        DType::BF16 => format!("f32_from_bits(0x{:x}u)", (bits as u32) << 16),
        DType::F32 => format!("f32_from_bits(0x{bits:x}u)"),
        DType::F64 => format!("f64_from_bits(U64(0x{bits:x}))"),
        DType::I64 | DType::U64 => format!("(({})U64(0x{bits:x}))", register(dtype)),
        _ => format!("(({})0x{bits:x}u)", register(dtype)),
    }
}

/// A parameter as C declares it.
struct Parameter {
    ty: String,
    name: String,
}

/// A kernel that is being written.
pub(super) struct KernelText<'a> {
    pub(super) language: Language,
    device: &'a DeviceInfo,
    name: String,
    defines: String,
    body: String,
    parameters: Vec<Parameter>,
    signature: Vec<ArgType>,
    args: Vec<LaunchArg>,
    uses_f64: bool,
    contracts: bool,
    in_place: bool,
    wide: bool,
    dynamic_shared_bytes: usize,
    requires: Vec<String>,
}

impl<'a> KernelText<'a> {
    /// A kernel of this name without arguments.
    pub(super) fn new(language: Language, request: &LowerRequest<'a>, name: impl Into<String>) -> Self {
        Self {
            language,
            device: request.device,
            name: name.into(),
            defines: String::new(),
            body: String::new(),
            parameters: Vec::new(),
            signature: Vec::new(),
            args: Vec::new(),
            uses_f64: false,
            contracts: false,
            in_place: false,
            wide: false,
            dynamic_shared_bytes: 0,
            requires: Vec::new(),
        }
    }

    /// Asks for shared memory beside what the text declares. CUDA C alone.
    pub(super) fn dynamic_shared(&mut self, len_bytes: usize) {
        self.dynamic_shared_bytes = len_bytes;
    }

    /// Says that the device must have `feature`, which decides on the instruction set too.
    pub(super) fn requires(&mut self, feature: &str) {
        self.requires.push(feature.to_owned());
    }

    /// Says that values of `dtype` are computed with.
    pub(super) fn uses(&mut self, dtype: DType) {
        self.uses_f64 |= dtype == DType::F64;
    }

    /// Lets a product and a sum be rounded once.
    pub(super) fn contracts(&mut self) {
        self.contracts = true;
    }

    /// Says that indices up to `reach` occur; decides the width of `INDEX`.
    pub(super) fn reaches(&mut self, reach: i64) {
        self.wide |= reach > NARROW_REACH;
    }

    /// Says that a written range may be the very range of a read one; before any buffer is added.
    pub(super) fn in_place(&mut self, in_place: bool) {
        self.in_place = in_place;
    }

    /// `#define name value`.
    pub(super) fn define(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.defines, "#define {name} {value}");
    }

    /// Defines `{name}_T`, the type of elements in memory, and `{name}_LOAD(p, i)` or `{name}_STORE(p, i, x)`, which
    /// convert from and to registers.
    pub(super) fn define_element(&mut self, name: &str, dtype: DType, access: Access) {
        self.uses(dtype);
        self.define(&format!("{name}_T"), storage(dtype));
        if access.reads() {
            self.define(&format!("{name}_LOAD(p, i)"), from_storage(dtype, "(p)[i]"));
        }
        if access.writes() {
            let value = to_storage(dtype, "x");
            self.define(
                &format!("{name}_STORE(p, i, x)"),
                format!("((p)[i] = ({})({value}))", storage(dtype)),
            );
        }
    }

    /// A size: defined, or passed where the text is to serve all.
    pub(super) fn size(&mut self, name: &str, value: usize) -> Result<(), Unservable> {
        if self.language.is_general() {
            let value = i64::try_from(value).map_err(|_| Unservable::new(format!("{name} is {value}")))?;
            return self.number(name, value);
        }
        self.define(name, value);
        Ok(())
    }

    /// Defines `AXES`, by which `places.cl` goes through the axes of sliding windows, and what its functions are passed
    /// beside: `TAPS`, which is a size already, and extents, where the text is to serve all.
    pub(super) fn define_axes(
        &mut self,
        input: &[usize],
        output: &[usize],
        kernel: &[usize],
        stride: &[usize],
        dilation: &[usize],
        pad: &[usize],
    ) -> Result<(), Unservable> {
        let lists = [input, output, kernel, stride, dilation, pad];
        let mut passed = Vec::new();
        let axes: Vec<String> = if self.language.is_general() {
            // Counted from the innermost axis, so that outer ones may be missing.
            self.check_axes(input.len(), MAX_WINDOW_AXES)?;
            passed.push("TAPS".to_owned());
            let names = ["input", "output", "kernel", "stride", "dilation", "pad"];
            for axis in 0..MAX_WINDOW_AXES {
                for ((name, list), missing) in names.into_iter().zip(lists).zip([1, 1, 1, 1, 1, 0]) {
                    let value = list.iter().rev().nth(axis).copied().unwrap_or(missing);
                    passed.push(format!("{name}{axis}"));
                    self.size(&format!("{name}{axis}"), value)?;
                }
            }
            let axis =
                |axis: usize| format!("AXIS({})", names.map(|name| format!("{name}{axis}")).join(", "));
            (0..MAX_WINDOW_AXES).map(axis).collect()
        } else {
            let axis = |axis: usize| format!("AXIS({})", lists.map(|list| list[axis].to_string()).join(", "));
            (0..input.len()).rev().map(axis).collect()
        };
        self.define("AXES(AXIS)", axes.join(" "));
        let join = |before: &str| passed.iter().map(|name| format!("{before}{name}")).collect::<String>();
        self.define("SIZE_PARAMETERS", join(", INDEX "));
        self.define("SIZE_ARGUMENTS", join(", "));
        Ok(())
    }

    /// Refuses more axes than a text that serves all sizes has.
    pub(super) fn check_axes(&self, axes: usize, most: usize) -> Result<(), Unservable> {
        if axes > most {
            return Err(precompiled::refusal(format!(
                "{axes} axes, but kernels that ship compiled have {most}"
            )));
        }
        Ok(())
    }

    /// Adds a buffer argument of elements of `dtype`, under `name` in the text.
    pub(super) fn buffer(&mut self, name: &str, arg: LaunchArg, dtype: DType, access: Access) {
        let read_only = if access == Access::Read { "const " } else { "" };
        // What may be updated in place may overlap.
        let alone = if self.in_place { "" } else { " RESTRICT" };
        let ty = format!("{read_only}GLOBAL {}*{alone}", storage(dtype));
        self.parameters.push(Parameter { ty, name: name.to_owned() });
        self.signature.push(ArgType::Buffer { dtype, access });
        self.args.push(arg);
    }

    /// Adds a scalar argument.
    pub(super) fn scalar(&mut self, name: &str, arg: LaunchArg, dtype: DType) {
        self.uses(dtype);
        self.parameters.push(Parameter { ty: register(dtype).to_owned(), name: name.to_owned() });
        self.signature.push(ArgType::Scalar(dtype));
        self.args.push(arg);
    }

    /// Adds the 32 bits of a runtime scalar.
    pub(super) fn bits_of_scalar(&mut self, name: &str, arg: LaunchArg, dtype: DType) {
        self.parameters.push(Parameter { ty: "u32".to_owned(), name: name.to_owned() });
        self.signature.push(ArgType::Scalar(dtype));
        self.args.push(arg);
    }

    /// Adds 64 bits.
    pub(super) fn word(&mut self, name: &str, bits: u64) {
        self.scalar(name, LaunchArg::Literal(Scalar::U64(bits)), DType::U64);
    }

    /// Adds a number that is fixed when the plan is made, so that kernels of many sizes share their code.
    pub(super) fn number(&mut self, name: &str, value: i64) -> Result<(), Unservable> {
        let (scalar, dtype) = match i32::try_from(value) {
            Ok(narrow) if !self.wide => (Scalar::I32(narrow), DType::I32),
            _ => (Scalar::I64(value), DType::I64),
        };
        if dtype == DType::I64 && !self.wide {
            return Err(Unservable::new(format!("{name} is {value}, beyond 32-bit indices")));
        }
        self.scalar(name, LaunchArg::Literal(scalar), dtype);
        Ok(())
    }

    /// The parameters so far as C declares them, and as C passes them on.
    pub(super) fn parameters(&self) -> (String, String) {
        let declared: Vec<String> = self.parameters.iter().map(|p| format!("{} {}", p.ty, p.name)).collect();
        let passed: Vec<&str> = self.parameters.iter().map(|p| p.name.as_str()).collect();
        (declared.join(", "), passed.join(", "))
    }

    /// How many arguments there are so far.
    pub(super) fn args(&self) -> usize {
        self.args.len()
    }

    /// Whether there is a parameter of this name.
    pub(super) fn has_parameter(&self, name: &str) -> bool {
        self.parameters.iter().any(|parameter| parameter.name == name)
    }

    /// Appends text behind the preludes.
    pub(super) fn push(&mut self, text: &str) {
        self.body.push_str(text);
    }

    /// The finished launch of `groups` workgroups of `threads` threads each.
    ///
    /// The grid is `[groups, 1, 1]`, or `[x, y, 1]` where one axis does not hold as many: `GROUP` in the text counts
    /// them, and may run beyond the last one.
    pub(super) fn launch(self, groups: usize, threads: [usize; 2]) -> Result<Launch, Unservable> {
        let device = self.device;
        check_threads(device, threads)?;
        if self.uses_f64 && !has_f64(self.language, device) {
            return Err(Unservable::new("f64 needs the feature fp64, which the device lacks"));
        }
        let most_args = device.limits.max_args as usize;
        if self.args.len() > most_args {
            return Err(Unservable::new(format!(
                "the kernel has {} arguments, but the device takes {most_args}",
                self.args.len()
            )));
        }
        let grid = grid(device, groups)?;
        let workgroup = [threads[0] as u32, threads[1] as u32, 1];
        if self.language.is_general() && (grid[1] != 1 || self.wide) {
            return Err(precompiled::refusal(
                "kernels that ship compiled have 32-bit indices, too few for these sizes",
            ));
        }
        if self.language == Language::Ptx {
            let source = KernelSource::Binary {
                format: self.language.format(),
                bytes: precompiled::ptx(&self.name)?,
                entry: self.name,
                workgroup,
                signature: Signature { in_place: self.in_place, ..Signature::new(self.signature) },
                requires: Vec::new(),
            };
            return Ok(Launch { source, grid, args: self.args });
        }

        let mut source = String::new();
        if self.uses_f64 {
            source.push_str("#define HAS_F64\n");
        }
        if self.contracts {
            source.push_str("#define CONTRACT\n");
        }
        if self.language.is_opencl() && device.has_feature("fp16") {
            source.push_str("#define HAS_F16\n");
        }
        if self.language.is_opencl() && !rounds_division(device) {
            source.push_str("#define ROUND_DIVISION\n");
        }
        source.push_str(self.language.prelude());
        source.push_str(include_str!("numeric.cl"));
        let index = if self.wide { "i64" } else { "i32" };
        let group = if grid[1] == 1 {
            "((INDEX)GROUP_X)".to_owned()
        } else {
            format!("((INDEX)GROUP_Y * {} + (INDEX)GROUP_X)", grid[0])
        };
        let _ = writeln!(source, "\n#define INDEX {index}\n#define GROUP {group}");
        let _ = writeln!(source, "#define NAME {}\n#define PARAMETERS {}", self.name, self.parameters().0);
        let _ = writeln!(source, "#define THREADS_X {}\n#define THREADS_Y {}", threads[0], threads[1]);
        let _ = writeln!(source, "#define THREADS (THREADS_X * THREADS_Y)");
        source.push_str(&self.defines);
        source.push_str(&self.body);

        let mut options = options(self.language, device).to_owned();
        if self.dynamic_shared_bytes > 0 {
            let _ = write!(options, " --dynamic-shared-bytes={}", self.dynamic_shared_bytes);
        }
        let source = KernelSource::Text {
            language: self.language.format(),
            source: source.into(),
            entry: self.name,
            options,
            workgroup,
            signature: Signature { in_place: self.in_place, ..Signature::new(self.signature) },
            requires: self.requires,
        };
        Ok(Launch { source, grid, args: self.args })
    }
}

/// Whether the compiler of OpenCL C can be told to round quotients and roots correctly.
fn rounds_division(device: &DeviceInfo) -> bool {
    device.has_feature("correctly_rounded_divide_sqrt")
}

/// Division and roots are correctly rounded, and nothing is contracted behind our back, wherever a compiler may choose. Where
/// it cannot be told to, `numeric.cl` rounds.
fn options(language: Language, device: &DeviceInfo) -> &'static str {
    if !language.is_opencl() {
        "--fmad=false"
    } else if rounds_division(device) {
        "-cl-std=CL1.2 -cl-fp32-correctly-rounded-divide-sqrt"
    } else {
        "-cl-std=CL1.2"
    }
}

fn has_f64(language: Language, device: &DeviceInfo) -> bool {
    !language.is_opencl() || device.has_feature("fp64")
}

/// Refuses a workgroup that the device could not run.
fn check_threads(device: &DeviceInfo, threads: [usize; 2]) -> Result<(), Unservable> {
    let most = most_threads(device);
    match threads[0].saturating_mul(threads[1]) {
        0 => Err(Unservable::new("a workgroup has at least one thread")),
        count if count > most => {
            Err(Unservable::new(format!("a workgroup of {count} threads, but the device takes {most}")))
        }
        _ => Ok(()),
    }
}

/// Most threads of a workgroup, along its first axis too.
pub(super) fn most_threads(device: &DeviceInfo) -> usize {
    let limits = &device.limits;
    limits.max_workgroup_threads.min(limits.max_workgroup[0]).max(1) as usize
}

/// The threads of a workgroup that a profile asks for, as many as the device takes.
pub(super) fn threads(request: &LowerRequest<'_>) -> usize {
    let asked = request
        .parameters
        .threads()
        .map(|threads| threads.iter().fold(1_usize, |product, &t| product.saturating_mul(t as usize)));
    asked.unwrap_or(DEFAULT_THREADS).clamp(1, most_threads(request.device))
}

/// The grid of at least `groups` workgroups.
fn grid(device: &DeviceInfo, groups: usize) -> Result<[u32; 3], Unservable> {
    let limits = device.limits.max_grid.map(|limit| limit.min(i32::MAX as u32) as usize);
    let rows = groups.div_ceil(limits[0].max(1));
    if rows > limits[1] {
        return Err(Unservable::new(format!("{groups} workgroups are more than the device's grid holds")));
    }
    let columns = groups.div_ceil(rows.max(1));
    Ok([columns as u32, rows.max(1) as u32, 1])
}

/// Lays out pieces of scratch memory.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Bytes so far.
    pub(super) len_bytes: u64,
}

impl Workspace {
    /// Memory for `elements` of `dtype`.
    pub(super) fn take(&mut self, device: &DeviceInfo, dtype: DType, elements: usize) -> LaunchArg {
        let alignment = WORKSPACE_ALIGNMENT.max(device.limits.offset_alignment_bytes);
        let offset = self.len_bytes.next_multiple_of(alignment);
        let len = elements as u64 * dtype.size() as u64;
        self.len_bytes = offset + len;
        LaunchArg::Workspace { offset, len }
    }
}
