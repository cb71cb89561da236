//! Test programs, in the formats that devices take.
//!
//! The kernels are small and do nothing fast: they show that arguments arrive, that work runs in order and that failures
//! are told. A device whose format is none of these may bring a program of its own ([`Program`]) with kernels of the
//! same names; those that it lacks leave their tests out.
//!
//! | kernel | arguments | does |
//! | --- | --- | --- |
//! | `test_copy` | in, out, n | `out[i] = in[i]` for i below n |
//! | `test_affine` | in, out, n, a, b | `out[i] = in[i] * a + b` |
//! | `test_update` | x, n, b | `x[i] = x[i] * 3 + b` |
//! | `test_split` | in, low, high, n | `low[i] = in[i] + 1`, `high[i] = in[i] + 2` |
//! | `test_blocks` | out, start | workgroup w writes `out[w] = start + w` |
//! | `test_scalars` | out, i32, u32, f32, i64 | writes the bits of each, the last as two words |
//! | `test_spin` | x, rounds | works for a time that grows with rounds, then `x[0] = x[0] * 3 + 1` |
//! | `test_fail` | | ends with a fault |
//!
//! Buffers hold u32, whose arithmetic wraps; n, a, b, start and rounds are u32. Every kernel but `test_blocks` is launched
//! as one workgroup, and n is at most [`MAX_ELEMENTS`].

use halite_hal::{Access, ArgType, DType, DeviceInfo, KernelSource, NativeKernel, Signature, Workgroup};
use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Elements that every test program can work on.
pub(crate) const MAX_ELEMENTS: usize = 1000;

/// A test program of one's own, in the device's format.
#[derive(Debug, Clone)]
pub struct Program {
    format: &'static str,
    bytes: Arc<[u8]>,
}

impl Program {
    /// A program in the format of that name, as [`DeviceInfo::kernel_formats`] lists it.
    pub fn new(format: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        // A format is a `&'static str` in the layer; a run has few programs.
        Self { format: String::leak(format.into()), bytes: bytes.into() }
    }

    /// The program of a file.
    ///
    /// # Errors
    /// What the system says of the file.
    pub fn from_file(format: impl Into<String>, path: &Path) -> std::io::Result<Self> {
        Ok(Self::new(format, std::fs::read(path)?))
    }
}

/// A kernel of the test programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestKernel {
    Copy,
    Affine,
    Update,
    Split,
    Blocks,
    Scalars,
    Spin,
    Fail,
}

impl TestKernel {
    pub(crate) const ALL: [Self; 8] = [
        Self::Copy,
        Self::Affine,
        Self::Update,
        Self::Split,
        Self::Blocks,
        Self::Scalars,
        Self::Spin,
        Self::Fail,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "test_copy",
            Self::Affine => "test_affine",
            Self::Update => "test_update",
            Self::Split => "test_split",
            Self::Blocks => "test_blocks",
            Self::Scalars => "test_scalars",
            Self::Spin => "test_spin",
            Self::Fail => "test_fail",
        }
    }

    pub(crate) fn signature(self) -> Signature {
        let buffer = |access| ArgType::Buffer { dtype: DType::U32, access };
        let (input, output, both) = (buffer(Access::Read), buffer(Access::Write), buffer(Access::ReadWrite));
        let number = ArgType::Scalar(DType::U32);
        Signature::new(match self {
            Self::Copy => vec![input, output, number],
            Self::Affine => vec![input, output, number, number, number],
            Self::Update => vec![both, number, number],
            Self::Split => vec![input, output, output, number],
            Self::Blocks => vec![output, number],
            Self::Scalars => {
                let scalars = [DType::I32, DType::U32, DType::F32, DType::I64].map(ArgType::Scalar);
                [output].into_iter().chain(scalars).collect()
            }
            Self::Spin => vec![both, number],
            Self::Fail => vec![],
        })
    }
}

/// Where the test programs of a device come from.
#[derive(Debug, Clone)]
pub(crate) enum Format {
    Native,
    OpenClC,
    CudaC,
    Npu,
    Own(Program),
}

impl Format {
    /// The format for a device: one of the suite's, or else one of these programs'.
    pub(crate) fn of(info: &DeviceInfo, own: &[Program]) -> Option<Self> {
        let known = [Self::Native, Self::OpenClC, Self::CudaC, Self::Npu];
        let own = own.iter().cloned().map(Self::Own);
        own.chain(known).find(|format| info.accepts(format.name()))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::OpenClC => "opencl-c",
            Self::CudaC => "cuda-c",
            Self::Npu => "npu-program",
            Self::Own(program) => program.format,
        }
    }

    /// Whether programs are text, which a compiler reads.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self, Self::OpenClC | Self::CudaC)
    }

    /// Whether [`TestKernel::Fail`] is there: on GPUs a kernel can only fail by taking the device along.
    pub(crate) fn can_fail(&self) -> bool {
        !self.is_text()
    }

    pub(crate) fn source(&self, kernel: TestKernel) -> KernelSource {
        match self {
            Self::Native => KernelSource::Native(native(kernel)),
            Self::OpenClC => self.text(OPENCL_C, kernel.name(), kernel.signature()),
            Self::CudaC => self.text(CUDA_C, kernel.name(), kernel.signature()),
            Self::Npu => binary(self.name(), NPU_PROGRAM.clone(), kernel.name(), kernel.signature()),
            Self::Own(program) => {
                binary(program.format, program.bytes.clone(), kernel.name(), kernel.signature())
            }
        }
    }

    /// Any text in this format, with an entry and a signature.
    pub(crate) fn text(&self, source: &str, entry: &str, signature: Signature) -> KernelSource {
        KernelSource::Text {
            language: self.name(),
            source: source.into(),
            entry: entry.into(),
            options: String::new(),
            workgroup: [1, 1, 1],
            signature,
            requires: Vec::new(),
        }
    }

    /// The bytes of the program, where it is binary.
    pub(crate) fn bytes(&self) -> Option<Arc<[u8]>> {
        match self {
            Self::Npu => Some(NPU_PROGRAM.clone()),
            Self::Own(program) => Some(program.bytes.clone()),
            _ => None,
        }
    }
}

/// Compiled code, with an entry and a signature.
pub(crate) fn binary(
    format: &'static str,
    bytes: Arc<[u8]>,
    entry: &str,
    signature: Signature,
) -> KernelSource {
    KernelSource::Binary {
        format,
        bytes,
        entry: entry.into(),
        workgroup: [1, 1, 1],
        signature,
        requires: Vec::new(),
    }
}

fn native(kernel: TestKernel) -> NativeKernel {
    NativeKernel::new(kernel.name(), kernel.signature(), move |workgroup| match kernel {
        TestKernel::Copy => {
            let n = number(workgroup, 2)? as usize;
            let input = elements(workgroup.read::<u32>(0)?, n)?;
            workgroup.write_all::<u32>(1)?.get_mut(..n).ok_or("out is short")?.copy_from_slice(input);
            Ok(())
        }
        TestKernel::Affine => {
            let (n, a, b) = (number(workgroup, 2)? as usize, number(workgroup, 3)?, number(workgroup, 4)?);
            let input = elements(workgroup.read::<u32>(0)?, n)?;
            let out = workgroup.write_all::<u32>(1)?.get_mut(..n).ok_or("out is short")?;
            for (out, input) in out.iter_mut().zip(input) {
                *out = input.wrapping_mul(a).wrapping_add(b);
            }
            Ok(())
        }
        TestKernel::Update => {
            let (n, b) = (number(workgroup, 1)? as usize, number(workgroup, 2)?);
            for x in workgroup.write_all::<u32>(0)?.get_mut(..n).ok_or("x is short")? {
                *x = x.wrapping_mul(3).wrapping_add(b);
            }
            Ok(())
        }
        TestKernel::Split => {
            let n = number(workgroup, 3)? as usize;
            let input = elements(workgroup.read::<u32>(0)?, n)?;
            for (arg, plus) in [(1, 1), (2, 2)] {
                let out = workgroup.write_all::<u32>(arg)?.get_mut(..n).ok_or("an output is short")?;
                for (out, input) in out.iter_mut().zip(input) {
                    *out = input.wrapping_add(plus);
                }
            }
            Ok(())
        }
        TestKernel::Blocks => {
            let value = number(workgroup, 1)?.wrapping_add(workgroup.linear_index() as u32);
            workgroup.write_chunk::<u32>(0, 1)?.fill(value);
            Ok(())
        }
        TestKernel::Scalars => {
            let mut bits = [0u64; 4];
            for (index, bits) in bits.iter_mut().enumerate() {
                *bits = workgroup.scalar(index + 1)?.to_bits();
            }
            let [a, b, c, d] = bits;
            let words = [a as u32, b as u32, c as u32, d as u32, (d >> 32) as u32];
            workgroup.write_all::<u32>(0)?.get_mut(..5).ok_or("out is short")?.copy_from_slice(&words);
            Ok(())
        }
        TestKernel::Spin => {
            let rounds = number(workgroup, 1)?;
            let mut state = 1u32;
            for _ in 0..rounds {
                state = black_box(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
            }
            let x = workgroup.write_all::<u32>(0)?.first_mut().ok_or("x is empty")?;
            *x = x.wrapping_mul(3).wrapping_add(1);
            Ok(())
        }
        TestKernel::Fail => Err("failed on purpose".into()),
    })
}

fn number(workgroup: &Workgroup<'_>, arg: usize) -> Result<u32, String> {
    Ok(workgroup.scalar(arg)?.to_bits() as u32)
}

fn elements(input: &[u32], n: usize) -> Result<&[u32], String> {
    input.get(..n).ok_or_else(|| "in is short".into())
}

/// A read of `x` in each round keeps compilers from leaving the loop out.
const OPENCL_C: &str = "
__kernel void test_copy(__global const uint *in, __global uint *out, uint n) {
    for (uint i = 0; i < n; i++) out[i] = in[i];
}
__kernel void test_affine(__global const uint *in, __global uint *out, uint n, uint a, uint b) {
    for (uint i = 0; i < n; i++) out[i] = in[i] * a + b;
}
__kernel void test_update(__global uint *x, uint n, uint b) {
    for (uint i = 0; i < n; i++) x[i] = x[i] * 3u + b;
}
__kernel void test_split(__global const uint *in, __global uint *low, __global uint *high, uint n) {
    for (uint i = 0; i < n; i++) { low[i] = in[i] + 1u; high[i] = in[i] + 2u; }
}
__kernel void test_blocks(__global uint *out, uint start) {
    uint w = (uint)(get_group_id(0) + get_num_groups(0) * (get_group_id(1) + get_num_groups(1) * get_group_id(2)));
    out[w] = start + w;
}
__kernel void test_scalars(__global uint *out, int a, uint b, float c, long d) {
    out[0] = (uint)a; out[1] = b; out[2] = as_uint(c); out[3] = (uint)(ulong)d; out[4] = (uint)((ulong)d >> 32);
}
__kernel void test_spin(__global uint *x, uint rounds) {
    volatile __global uint *seen = x;
    uint s = 1u;
    for (uint i = 0; i < rounds; i++) s = s * 1664525u + *seen;
    x[0] = x[0] * 3u + (s == 0u ? 2u : 1u) - (s == 0u ? 1u : 0u);
}
";

const CUDA_C: &str = "
typedef unsigned int uint;
typedef unsigned long long ulong;
extern \"C\" __global__ void test_copy(const uint *in, uint *out, uint n) {
    for (uint i = 0; i < n; i++) out[i] = in[i];
}
extern \"C\" __global__ void test_affine(const uint *in, uint *out, uint n, uint a, uint b) {
    for (uint i = 0; i < n; i++) out[i] = in[i] * a + b;
}
extern \"C\" __global__ void test_update(uint *x, uint n, uint b) {
    for (uint i = 0; i < n; i++) x[i] = x[i] * 3u + b;
}
extern \"C\" __global__ void test_split(const uint *in, uint *low, uint *high, uint n) {
    for (uint i = 0; i < n; i++) { low[i] = in[i] + 1u; high[i] = in[i] + 2u; }
}
extern \"C\" __global__ void test_blocks(uint *out, uint start) {
    uint w = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    out[w] = start + w;
}
extern \"C\" __global__ void test_scalars(uint *out, int a, uint b, float c, long long d) {
    out[0] = (uint)a; out[1] = b; out[2] = __float_as_uint(c); out[3] = (uint)(ulong)d; out[4] = (uint)((ulong)d >> 32);
}
extern \"C\" __global__ void test_spin(uint *x, uint rounds) {
    volatile uint *seen = x;
    uint s = 1u;
    for (uint i = 0; i < rounds; i++) s = s * 1664525u + *seen;
    x[0] = x[0] * 3u + (s == 0u ? 2u : 1u) - (s == 0u ? 1u : 0u);
}
";

static NPU_PROGRAM: LazyLock<Arc<[u8]>> = LazyLock::new(npu_program);

fn npu_program() -> Arc<[u8]> {
    use halite_npu_isa as isa;
    use isa::{BinaryOp, CompareOp, CoreKind, Dim, Inst, KernelBuilder, Pipe};
    const U32: isa::DType = isa::DType::U32;
    /// Bytes of an operand in the core's memory.
    const ROW: i32 = 4096;
    let row = |n: isa::Operand| [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(n, 4, 4)];
    let argument = |arg: &ArgType| match arg {
        ArgType::Buffer { access: Access::Read, .. } => isa::ArgType::Buffer(isa::Access::Read),
        ArgType::Buffer { access: Access::Write, .. } => isa::ArgType::Buffer(isa::Access::Write),
        ArgType::Buffer { .. } => isa::ArgType::Buffer(isa::Access::ReadWrite),
        ArgType::Scalar(DType::I32) => isa::ArgType::I32,
        ArgType::Scalar(DType::F32) => isa::ArgType::F32,
        ArgType::Scalar(DType::I64) => isa::ArgType::I64,
        ArgType::Scalar(_) => isa::ArgType::U32,
    };
    let build = |kernel: TestKernel| {
        let mut k = KernelBuilder::new(kernel.name(), CoreKind::Vector);
        let args: Vec<isa::Operand> =
            kernel.signature().args.iter().map(|arg| k.scalar(argument(arg)).into()).collect();
        // What is loaded, what becomes of it, where it is stored: each only where there is an element.
        match (kernel, args.as_slice()) {
            (TestKernel::Copy, &[input, out, n]) => k.when(n, CompareOp::Gt, 0, |k| {
                k.load_ub(U32, 0, input, row(n));
                k.sync(Pipe::Mte2, Pipe::Mte3, 0);
                k.store_ub(U32, out, 0, row(n));
            }),
            (TestKernel::Affine, &[input, out, n, a, b]) => k.when(n, CompareOp::Gt, 0, |k| {
                k.load_ub(U32, 0, input, row(n));
                k.sync(Pipe::Mte2, Pipe::V, 0);
                k.binary_scalar(BinaryOp::Mul, U32, ROW, 0, a, n);
                k.binary_scalar(BinaryOp::Add, U32, ROW, ROW, b, n);
                k.sync(Pipe::V, Pipe::Mte3, 0);
                k.store_ub(U32, out, ROW, row(n));
            }),
            (TestKernel::Update, &[x, n, b]) => k.when(n, CompareOp::Gt, 0, |k| {
                k.load_ub(U32, 0, x, row(n));
                k.sync(Pipe::Mte2, Pipe::V, 0);
                k.binary_scalar(BinaryOp::Mul, U32, ROW, 0, 3, n);
                k.binary_scalar(BinaryOp::Add, U32, ROW, ROW, b, n);
                k.sync(Pipe::V, Pipe::Mte3, 0);
                k.store_ub(U32, x, ROW, row(n));
            }),
            (TestKernel::Split, &[input, low, high, n]) => k.when(n, CompareOp::Gt, 0, |k| {
                k.load_ub(U32, 0, input, row(n));
                k.sync(Pipe::Mte2, Pipe::V, 0);
                k.binary_scalar(BinaryOp::Add, U32, ROW, 0, 1, n);
                k.binary_scalar(BinaryOp::Add, U32, 2 * ROW, 0, 2, n);
                k.sync(Pipe::V, Pipe::Mte3, 0);
                k.store_ub(U32, low, ROW, row(n));
                k.store_ub(U32, high, 2 * ROW, row(n));
            }),
            (TestKernel::Blocks, &[out, start]) => {
                let block = k.block_index();
                let value = k.add(block, start);
                let offset = k.mul(block, 4);
                let place = k.add(out, offset);
                k.duplicate(U32, 0, value, 1);
                k.sync(Pipe::V, Pipe::Mte3, 0);
                k.store_ub(U32, place, 0, row(1.into()));
            }
            (TestKernel::Scalars, &[out, a, b, c, d]) => {
                let high = k.alu(isa::AluOp::Shr, d, 32);
                for (index, value) in [a, b, c, d, high].into_iter().enumerate() {
                    let index = index as i32;
                    k.duplicate(U32, 64 * index, value, 1);
                    let place = k.add(out, 4 * index);
                    k.sync(Pipe::V, Pipe::Mte3, 0);
                    k.store_ub(U32, place, 64 * index, row(1.into()));
                }
            }
            (TestKernel::Spin, &[x, rounds]) => {
                k.load_ub(U32, 0, x, row(1.into()));
                k.sync(Pipe::Mte2, Pipe::V, 0);
                k.repeat(0, rounds, 1, |k, _| k.push(Inst::Mark { id: 0 }));
                k.binary_scalar(BinaryOp::Mul, U32, ROW, 0, 3, 1);
                k.binary_scalar(BinaryOp::Add, U32, ROW, ROW, 1, 1);
                k.sync(Pipe::V, Pipe::Mte3, 0);
                k.store_ub(U32, x, ROW, row(1.into()));
            }
            _ => k.push(Inst::Trap { code: 42 }),
        }
        k.finish().expect("the kernels above obey the rules of programs")
    };
    let kernels = TestKernel::ALL.into_iter().map(build).collect();
    isa::Program::new(kernels).expect("the kernels have distinct names").to_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_has_every_kernel_that_can_end() {
        for text in [OPENCL_C, CUDA_C] {
            for kernel in TestKernel::ALL.into_iter().filter(|kernel| *kernel != TestKernel::Fail) {
                assert!(text.contains(&format!("void {}(", kernel.name())), "{kernel:?}");
            }
        }
    }

    #[test]
    fn the_npu_program_is_valid() {
        assert!(halite_npu_isa::Program::from_bytes(&NPU_PROGRAM).is_ok());
    }
}
