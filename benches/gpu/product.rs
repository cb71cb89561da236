//! Products of matrices as the engine computes them, and as a vendor's library does through the HAL.

use crate::Outcome;
use crate::report::Work;
use halite::hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite::hal::{Arg, Device, Kernel, KernelSource, MemoryKind, Stream};
use halite::{DType, Engine, Tensor, eval};
use std::fmt;
use std::time::{Duration, Instant};

/// `[m, k]` by `[k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) dtype: DType,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "matmul {} {} x {} x {}", self.dtype, self.m, self.n, self.k)
    }
}

impl Product {
    pub(crate) fn work(&self) -> Work {
        Work::Flops(2.0 * self.m as f64 * self.n as f64 * self.k as f64)
    }

    /// Operands between -1 and 1, settled on the engine's device.
    pub(crate) fn operands(&self, engine: &Engine) -> Outcome<[Tensor; 2]> {
        let operand = |shape: [usize; 2], stream| -> Outcome<Tensor> {
            let uniform = engine.uniform(&shape, -1.0, 1.0, 7, stream)?;
            let operand = uniform.cast(self.dtype)?;
            eval(&[&operand])?;
            Ok(operand)
        };
        Ok([operand([self.m, self.k], 0)?, operand([self.k, self.n], 1)?])
    }
}

/// The time until the device is done with `count` products of tensors, planned once.
pub(crate) fn multiply(engine: &Engine, [lhs, rhs]: &[Tensor; 2], count: u64) -> Outcome<Duration> {
    let begin = Instant::now();
    for _ in 0..count {
        eval(&[&lhs.matmul(rhs)?])?;
    }
    engine.synchronize()?;
    Ok(begin.elapsed())
}

/// The vendor's product, which the HAL calls the built-in `matmul`.
pub(crate) struct Builtin {
    stream: Stream,
    kernel: Kernel,
    args: Vec<Arg>,
}

impl Builtin {
    /// The product of copies of these tensors, with memory of its own.
    ///
    /// # Errors
    /// Where the device has no such library.
    pub(crate) fn new(device: &Device, product: &Product, operands: &[Tensor; 2]) -> Outcome<Self> {
        let Product { m, n, k, dtype } = *product;
        let shapes = [[m, k], [k, n], [m, n]].map(|shape| shape.map(|extent| extent as u64));
        let descriptors = shapes.map(|shape| OperandDesc::contiguous(dtype, &shape));
        let op = BuiltinOp::new(BuiltinKind::MatMul, descriptors.to_vec())?;
        let kernel = device.load(&KernelSource::Builtin(op))?;
        let stream = device.create_stream()?;
        let buffer = |len_bytes| device.allocate(len_bytes, MemoryKind::Device);
        let mut args = Vec::new();
        for (place, [rows, columns]) in shapes.into_iter().enumerate() {
            let slice = buffer(rows * columns * dtype.size() as u64)?.all();
            if let Some(operand) = operands.get(place) {
                stream.write_blocking(&slice, &bytes_of(operand)?)?;
            }
            args.push(Arg::Buffer(slice));
        }
        if kernel.workspace_bytes() > 0 {
            args.push(Arg::Buffer(buffer(kernel.workspace_bytes())?.all()));
        }
        stream.synchronize()?;
        Ok(Self { stream, kernel, args })
    }

    /// The time until the device is done with `count` products.
    pub(crate) fn run(&self, count: u64) -> Outcome<Duration> {
        let begin = Instant::now();
        for _ in 0..count {
            self.stream.launch(&self.kernel, [1, 1, 1], &self.args)?;
        }
        self.stream.synchronize()?;
        Ok(begin.elapsed())
    }
}

/// The elements as they lie in memory.
fn bytes_of(tensor: &Tensor) -> Outcome<Vec<u8>> {
    Ok(match tensor.dtype().size() {
        2 => tensor.bitcast(DType::U16)?.to_vec::<u16>()?.into_iter().flat_map(u16::to_ne_bytes).collect(),
        _ => tensor.bitcast(DType::U32)?.to_vec::<u32>()?.into_iter().flat_map(u32::to_ne_bytes).collect(),
    })
}
