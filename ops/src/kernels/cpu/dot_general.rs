//! Batched matrix products: from a [`Dot`] to the plans of [`gemm`](super::gemm).
//!
//! Launch: a grid `[groups, 1, 1]` of the plan's groups. f32, f16 and f64 are multiplied where they lie; bf16, and
//! f16 with an f32 result, are converted to f32 in the workspace first. Integers go through plain loops, with
//! one row of the result per group. Parameters: `tile: [mc, nc, kc]`.

use super::elementwise::Rep;
use super::elementwise::machine::argument;
use super::gemm::{BatchAxis, Bias, Epilogue, GemmElement, GemmPlan, GemmSpec, GemmTile, MatrixStrides};
use super::simd::Isa;
use super::widen::Widened;
use super::{requirements, supports};
use crate::lower::{
    BiasAxis, Dot, KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, MatrixView, Unservable,
};
use half::f16;
use halite_hal::{Access, ArgType, DType, Element, KernelSource, NativeKernel, Signature, Workgroup};
use halite_profiles::{Parameters, Size};
use std::sync::Arc;

/// The variants of `dot_general`, best first.
pub fn variants() -> Vec<KernelVariant> {
    let of = |isa: Isa| {
        KernelVariant::new("dot_general", isa.name(), "native", requirements(isa), move |request| {
            let KernelOp::Dot(dot) = request.op else {
                return Err(Unservable::new(format!("{} is no matrix product", request.op.name())));
            };
            lower(isa, dot, request)
        })
        .with_sizes([Size::Tile(3)])
        .with_candidates(tiles())
    };
    Isa::ALL.into_iter().rev().map(of).collect()
}

/// Blockings for tuning to try: `[mc, nc, kc]`, from what fits a small first-level cache to what fills a large second.
fn tiles() -> Vec<Parameters> {
    let [mc, nc, kc] = [[72, 144, 288], [256, 512, 1024], [128, 256, 512]];
    let every =
        mc.into_iter().flat_map(|m| nc.into_iter().flat_map(move |n| kc.into_iter().map(move |k| [m, n, k])));
    every.map(|tile| Parameters::default().with_tile(tile)).collect()
}

/// The profile's blocking; without one, that of the instruction set.
fn tile(parameters: &Parameters) -> GemmTile {
    match parameters.tile() {
        Some(&[mc, nc, kc]) => GemmTile { mc: mc as usize, nc: nc as usize, kc: kc as usize },
        _ => GemmTile::default(),
    }
}

fn lower(isa: Isa, dot: &Dot, request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    supports(isa)?;
    let problem = Problem::new(dot, request)?;
    if problem.elements == 0 {
        return Ok(Lowered::default());
    }
    let cores = request.device.compute_units as usize;
    let inputs = if dot.epilogue.bias.is_some() { 3 } else { 2 };
    let operands: Vec<LaunchArg> = (0..inputs).map(LaunchArg::Input).collect();
    let out = LaunchArg::Output(0);
    let tile = tile(request.parameters);
    match (dot.dtype, dot.out_dtype) {
        (DType::F32, DType::F32) => {
            Ok(Lowered::single(problem.launch::<f32>(isa, tile, cores, &operands, out)?))
        }
        (DType::F16, DType::F16) => {
            Ok(Lowered::single(problem.launch::<f16>(isa, tile, cores, &operands, out)?))
        }
        (DType::F64, DType::F64) => {
            Ok(Lowered::single(problem.launch::<f64>(isa, tile, cores, &operands, out)?))
        }
        (DType::F16 | DType::BF16, DType::F32 | DType::BF16) => {
            let mut work = Widened::new(isa, cores);
            let mut wide = Vec::with_capacity(inputs);
            for (n, operand) in operands.iter().enumerate() {
                wide.push(work.widened(*operand, request.inputs[n].dtype, problem.input_elements[n])?);
            }
            let narrow = dot.out_dtype != DType::F32;
            let target = if narrow { work.reserve(problem.elements as u64 * 4) } else { out };
            work.push(problem.launch::<f32>(isa, tile, cores, &wide, target)?);
            if narrow {
                work.convert(target, DType::F32, out, dot.out_dtype, problem.elements)?;
            }
            Ok(work.finish())
        }
        (dtype, out_dtype) if dtype == out_dtype && dtype.is_integer() => {
            Ok(Lowered::single(problem.plain_launch(isa, dtype, &operands, out)?))
        }
        (dtype, out_dtype) => Err(Unservable::new(format!(
            "no matrix product of {dtype} with a result of {out_dtype} is written"
        ))),
    }
}

/// A product whose sizes, strides and operands were checked against the buffers.
struct Problem {
    spec: GemmSpec,
    offsets: [i64; 2],
    /// Elements of each input buffer, and of the result.
    input_elements: Vec<usize>,
    elements: usize,
}

impl Problem {
    fn new(dot: &Dot, request: &LowerRequest<'_>) -> Result<Self, Unservable> {
        let sizes = dot.batch.iter().chain([&dot.m, &dot.n]);
        let elements = sizes.clone().try_fold(1usize, |product, size| product.checked_mul(*size));
        let elements = elements
            .filter(|elements| isize::try_from(*elements).is_ok())
            .ok_or_else(|| Unservable::new("the result has too many elements"))?;
        let bias = match dot.epilogue.bias {
            None => Bias::None,
            Some(BiasAxis::Row) => Bias::PerRow,
            Some(BiasAxis::Column) => Bias::PerColumn,
            Some(BiasAxis::Channel) => {
                return Err(Unservable::new("a matrix product has no channels to add a bias to"));
            }
        };
        let inputs = if bias == Bias::None { 2 } else { 3 };
        if request.inputs.len() != inputs {
            return Err(Unservable::new(format!(
                "{} inputs where {inputs} are needed",
                request.inputs.len()
            )));
        }
        let input_elements: Vec<usize> = request.inputs.iter().map(|tensor| tensor.elements()).collect();
        if elements > 0 {
            in_bounds("lhs", &dot.lhs, &dot.batch, [dot.m, dot.k], input_elements[0])?;
            in_bounds("rhs", &dot.rhs, &dot.batch, [dot.k, dot.n], input_elements[1])?;
            let bias_len = if bias == Bias::PerRow { dot.m } else { dot.n };
            if bias != Bias::None && input_elements[2] < bias_len {
                return Err(Unservable::new(format!(
                    "the bias has {} elements where {bias_len} are needed",
                    input_elements[2]
                )));
            }
        }
        let matrix = dot.m * dot.n;
        let mut step = matrix as isize;
        let mut batch = Vec::with_capacity(dot.batch.len());
        for (axis, len) in dot.batch.iter().enumerate().rev() {
            let (a, b) = (dot.lhs.batch_strides[axis] as isize, dot.rhs.batch_strides[axis] as isize);
            batch.push(BatchAxis { len: *len, a, b, c: step });
            step = step.wrapping_mul(*len as isize);
        }
        batch.reverse();
        let strides = |view: &MatrixView| MatrixStrides {
            row: view.row_stride as isize,
            col: view.col_stride as isize,
        };
        let spec = GemmSpec {
            batch,
            m: dot.m,
            n: dot.n,
            k: dot.k,
            a: strides(&dot.lhs),
            b: strides(&dot.rhs),
            c_row: dot.n,
            epilogue: Epilogue { bias, relu: dot.epilogue.relu },
        };
        Ok(Self { spec, offsets: [dot.lhs.offset, dot.rhs.offset], input_elements, elements })
    }

    fn signature(&self, dtype: DType) -> Signature {
        let buffer = |access| ArgType::Buffer { dtype, access };
        let mut types = vec![buffer(Access::Read); self.input_elements.len()];
        types.push(buffer(Access::Write));
        Signature::new(types)
    }

    fn launch<T: GemmElement + Element>(
        &self,
        isa: Isa,
        tile: GemmTile,
        cores: usize,
        operands: &[LaunchArg],
        out: LaunchArg,
    ) -> Result<Launch, Unservable> {
        let plan = GemmPlan::<T>::new(isa, self.spec.clone(), tile, cores);
        let groups = plan.groups();
        if groups == u32::MAX {
            return Err(Unservable::new("the product needs more workgroups than a grid holds"));
        }
        let scratch_bytes = plan.scratch_bytes();
        let name = format!("dot_general_{}_{}", T::DTYPE, isa.name());
        let (inputs, elements) = (self.input_elements.clone(), self.elements);
        let offsets = self.offsets;
        let plan = Arc::new(plan);
        let run = move |group: &mut Workgroup<'_>| {
            let a = argument(group, 0, T::DTYPE, inputs[0])?.cast::<T>().cast_const();
            let b = argument(group, 1, T::DTYPE, inputs[1])?.cast::<T>().cast_const();
            let bias = match inputs.get(2) {
                Some(len) => argument(group, 2, T::DTYPE, *len)?.cast::<T>().cast_const(),
                None => std::ptr::null(),
            };
            let c = argument(group, inputs.len(), T::DTYPE, elements)?.cast::<T>();
            let index = group.index()[0];
            let scratch = group.take_scratch();
            let (a, b) = (a.wrapping_offset(offsets[0] as isize), b.wrapping_offset(offsets[1] as isize));
            // SAFETY: `Problem::new` checked that all of the strides stay inside the buffers, whose lengths were
            // checked above; the launch check excludes that the result overlaps another argument, and groups
            // write parts of their own.
            unsafe { plan.run_group(index, a, b, c, bias, scratch) };
            Ok(())
        };
        let mut kernel = NativeKernel::new(name, self.signature(T::DTYPE), run);
        kernel.scratch_bytes = scratch_bytes;
        kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
        let args = [operands, &[out]].concat();
        Ok(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args })
    }

    /// Integers, whose wrapping sums and products do not depend on the sign.
    fn plain_launch(
        &self,
        isa: Isa,
        dtype: DType,
        operands: &[LaunchArg],
        out: LaunchArg,
    ) -> Result<Launch, Unservable> {
        let rows = self.elements / self.spec.n.max(1);
        let groups = rows.min(4096);
        let share = rows.div_ceil(groups.max(1));
        let (spec, offsets, inputs) = (self.spec.clone(), self.offsets, self.input_elements.clone());
        let signed = dtype.is_signed();
        let elements = self.elements;
        let run = move |group: &mut Workgroup<'_>| {
            let first = group.index()[0] as usize * share;
            let plain = Plain { spec: &spec, offsets, inputs: &inputs, elements, signed, dtype };
            match Rep::of(dtype).size() {
                1 => plain.run::<u8>(group, first, share),
                2 => plain.run::<u16>(group, first, share),
                4 => plain.run::<u32>(group, first, share),
                _ => plain.run::<u64>(group, first, share),
            }
        };
        let name = format!("dot_general_{dtype}_plain");
        let mut kernel = NativeKernel::new(name, self.signature(dtype), run);
        kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
        let args = [operands, &[out]].concat();
        let groups = rows.div_ceil(share.max(1)) as u32;
        Ok(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args })
    }
}

/// Whether a view of `batch` matrices of `[rows, columns]` stays inside a buffer of `elements`.
fn in_bounds(
    name: &str,
    view: &MatrixView,
    batch: &[usize],
    [rows, columns]: [usize; 2],
    elements: usize,
) -> Result<(), Unservable> {
    if view.batch_strides.len() != batch.len() {
        return Err(Unservable::new(format!(
            "{name} has {} batch strides for {} batch axes",
            view.batch_strides.len(),
            batch.len()
        )));
    }
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let axes = view.batch_strides.iter().zip(batch);
    let axes = axes.chain([(&view.row_stride, &rows), (&view.col_stride, &columns)]);
    let (mut first, mut last) = (i128::from(view.offset), i128::from(view.offset));
    for (stride, extent) in axes {
        let reach = i128::from(*stride) * (extent.saturating_sub(1) as i128);
        first += reach.min(0);
        last += reach.max(0);
    }
    if first < 0 || last >= elements as i128 {
        return Err(Unservable::new(format!(
            "{name} reads elements {first} to {last} of a buffer of {elements}"
        )));
    }
    Ok(())
}

/// An integer's bits.
trait Wrapping: Copy + Default + Element {
    fn multiply_add(self, a: Self, b: Self) -> Self;
    fn plus(self, other: Self) -> Self;
    fn is_negative(self) -> bool;
}

macro_rules! wrapping {
    ($($ty:ty: $signed:ty),*) => {$(
        impl Wrapping for $ty {
            #[inline(always)]
            fn multiply_add(self, a: Self, b: Self) -> Self { self.wrapping_add(a.wrapping_mul(b)) }
            #[inline(always)]
            fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn is_negative(self) -> bool { (self as $signed) < 0 }
        }
    )*};
}

wrapping! { u8: i8, u16: i16, u32: i32, u64: i64 }

struct Plain<'a> {
    spec: &'a GemmSpec,
    offsets: [i64; 2],
    inputs: &'a [usize],
    elements: usize,
    signed: bool,
    dtype: DType,
}

impl Plain<'_> {
    /// Computes the rows `first..first + share` of the result, counted over all matrices.
    fn run<T: Wrapping>(&self, group: &Workgroup<'_>, first: usize, share: usize) -> Result<(), String> {
        let spec = self.spec;
        let a = argument(group, 0, self.dtype, self.inputs[0])?.cast::<T>().cast_const();
        let b = argument(group, 1, self.dtype, self.inputs[1])?.cast::<T>().cast_const();
        let bias = match self.inputs.get(2) {
            Some(len) => argument(group, 2, self.dtype, *len)?.cast::<T>().cast_const(),
            None => std::ptr::null(),
        };
        let c = argument(group, self.inputs.len(), self.dtype, self.elements)?.cast::<T>();
        let (a, b) =
            (a.wrapping_offset(self.offsets[0] as isize), b.wrapping_offset(self.offsets[1] as isize));
        for row in first..(first + share).min(self.elements / spec.n) {
            let (mut rest, m) = (row / spec.m, row % spec.m);
            let (mut a, mut b) = (a.wrapping_offset(m as isize * spec.a.row), b);
            for axis in spec.batch.iter().rev() {
                let index = (rest % axis.len) as isize;
                rest /= axis.len;
                (a, b) = (a.wrapping_offset(index * axis.a), b.wrapping_offset(index * axis.b));
            }
            for n in 0..spec.n {
                let mut sum = T::default();
                // SAFETY: `Problem::new` checked that every element that the strides reach lies inside, and the
                // row of the result belongs to this workgroup.
                unsafe {
                    for k in 0..spec.k as isize {
                        let b = b.offset(n as isize * spec.b.col + k * spec.b.row);
                        sum = sum.multiply_add(*a.offset(k * spec.a.col), *b);
                    }
                    sum = match spec.epilogue.bias {
                        Bias::None => sum,
                        Bias::PerRow => sum.plus(*bias.add(m)),
                        Bias::PerColumn => sum.plus(*bias.add(n)),
                    };
                    let negative = spec.epilogue.relu && self.signed && sum.is_negative();
                    *c.add(row * spec.n + n) = if negative { T::default() } else { sum };
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::elementwise::reference::{float, integer, read, rounded, wrap};
    use crate::kernels::cpu::elementwise::tests::is_available;
    use crate::kernels::cpu::harness::{Memory, Random, execute};
    use crate::lower::{Epilogue as DotEpilogue, TensorType};

    /// A random view of `batch` matrices, and the elements of a buffer that holds them.
    fn random_view(random: &mut Random, batch: &[usize], rows: usize, columns: usize) -> (MatrixView, usize) {
        let transposed = random.below(2) == 0;
        let (row_stride, col_stride) = if transposed { (1, rows as i64) } else { (columns as i64, 1) };
        let mut step = (rows * columns) as i64;
        let mut batch_strides = vec![0; batch.len()];
        for axis in (0..batch.len()).rev() {
            if random.below(4) > 0 {
                batch_strides[axis] = step;
                step *= batch[axis] as i64;
            }
        }
        let offset = random.below(3) as i64;
        (MatrixView { offset, batch_strides, row_stride, col_stride }, (offset + step.max(1)) as usize)
    }

    #[test]
    fn random_products_match_the_definition() {
        for seed in 0..150 {
            let mut random = Random::new(seed);
            let batch: Vec<usize> = (0..random.below(3)).map(|_| random.pick(&[1, 2, 3, 0])).collect();
            let (m, n) = (random.pick(&[1, 3, 17, 40]), random.pick(&[1, 5, 16, 33, 0]));
            let k = random.pick(&[0, 1, 7, 64]);
            let (dtype, out_dtype) = random.pick(&[
                (DType::F32, DType::F32),
                (DType::F16, DType::F16),
                (DType::F16, DType::F32),
                (DType::BF16, DType::BF16),
                (DType::BF16, DType::F32),
                (DType::F64, DType::F64),
                (DType::I32, DType::I32),
                (DType::U32, DType::U32),
                (DType::I64, DType::I64),
                (DType::I8, DType::I8),
            ]);
            let (lhs, lhs_len) = random_view(&mut random, &batch, m, k);
            let (rhs, rhs_len) = random_view(&mut random, &batch, k, n);
            let bias = random.pick(&[None, Some(BiasAxis::Row), Some(BiasAxis::Column)]);
            let epilogue = DotEpilogue { bias, relu: random.below(2) == 0 };
            let mut lens = vec![lhs_len, rhs_len];
            lens.extend(bias.map(|axis| if axis == BiasAxis::Row { m } else { n }));
            let inputs: Vec<(TensorType, Memory)> = lens
                .iter()
                .map(|len| {
                    let bytes: Vec<u8> = (0..*len)
                        .flat_map(|_| {
                            let bits = if dtype.is_float() {
                                rounded(dtype, f64::from(random.unit()))
                            } else {
                                random.bits()
                            };
                            bits.to_le_bytes()[..dtype.size()].to_vec()
                        })
                        .collect();
                    (TensorType::new(dtype, &[*len]), Memory::new(&bytes))
                })
                .collect();
            let dot = Dot { batch: batch.clone(), m, n, k, lhs, rhs, dtype, out_dtype, epilogue };
            let outputs = [TensorType::new(out_dtype, &[&batch[..], &[m, n]].concat())];
            let op = KernelOp::Dot(dot.clone());
            for variant in variants().iter().filter(|variant| is_available(variant)) {
                let got = execute(variant, &op, &inputs, &outputs, &[], &[]).expect("the product is served");
                for at in 0..outputs[0].elements() {
                    check(
                        &dot,
                        &inputs,
                        at,
                        read(got[0].bytes(), out_dtype, at),
                        &format!("seed {seed}, {}", variant.name),
                    );
                }
            }
        }
    }

    fn check(dot: &Dot, inputs: &[(TensorType, Memory)], at: usize, got: u64, context: &str) {
        let (row, column) = (at / dot.n % dot.m, at % dot.n);
        let mut rest = at / dot.n / dot.m;
        let (mut a, mut b) = (dot.lhs.offset, dot.rhs.offset);
        for axis in (0..dot.batch.len()).rev() {
            let index = (rest % dot.batch[axis]) as i64;
            rest /= dot.batch[axis];
            a += index * dot.lhs.batch_strides[axis];
            b += index * dot.rhs.batch_strides[axis];
        }
        let bits = |input: usize, at: i64| read(inputs[input].1.bytes(), dot.dtype, at as usize);
        let terms = (0..dot.k as i64).map(|k| {
            let a = bits(0, a + row as i64 * dot.lhs.row_stride + k * dot.lhs.col_stride);
            (a, bits(1, b + k * dot.rhs.row_stride + column as i64 * dot.rhs.col_stride))
        });
        let bias =
            dot.epilogue.bias.map(|axis| bits(2, if axis == BiasAxis::Row { row } else { column } as i64));
        if dot.dtype.is_float() {
            let sum: f64 = terms.map(|(a, b)| float(dot.dtype, a) * float(dot.dtype, b)).sum();
            let sum = sum + bias.map_or(0.0, |bias| float(dot.dtype, bias));
            let sum = if dot.epilogue.relu { sum.max(0.0) } else { sum };
            // Up to 64 products of numbers below 1 in f32, and one rounding to the result's type.
            let tolerance = match dot.out_dtype {
                DType::F64 => 1e-13,
                DType::F32 => 1e-5,
                DType::F16 => 1e-5 + sum.abs() / 1024.0,
                _ => 1e-5 + sum.abs() / 128.0,
            };
            let got = float(dot.out_dtype, got);
            assert!((got - sum).abs() <= tolerance, "{context}: {got} at {at}, expected {sum} for {dot:?}");
        } else {
            let mut sum = 0;
            for (a, b) in terms.chain(bias.map(|bias| (bias, 1))) {
                sum =
                    wrap(dot.dtype, integer(dot.dtype, a) * integer(dot.dtype, b) + integer(dot.dtype, sum));
            }
            let sum = if dot.epilogue.relu && integer(dot.dtype, sum) < 0 { 0 } else { sum };
            assert_eq!(got, sum, "{context}: at {at} for {dot:?}");
        }
    }

    #[test]
    fn strides_that_leave_the_buffer_are_refused() {
        let view = |row_stride| MatrixView { offset: 0, batch_strides: vec![], row_stride, col_stride: 1 };
        let dot = |rows| Dot {
            batch: vec![],
            m: 2,
            n: 2,
            k: 2,
            lhs: view(rows),
            rhs: view(2),
            dtype: DType::F32,
            out_dtype: DType::F32,
            epilogue: DotEpilogue::default(),
        };
        let inputs = [0, 1].map(|_| (TensorType::new(DType::F32, &[2, 2]), Memory::poisoned(16)));
        let outputs = [TensorType::new(DType::F32, &[2, 2])];
        let variant = variants().pop().expect("there are variants");
        for rows in [3, -1, i64::MAX] {
            let op = KernelOp::Dot(dot(rows));
            let error = execute(&variant, &op, &inputs, &outputs, &[], &[]).expect_err("must be refused");
            assert!(error.to_string().contains("of a buffer of 4"), "{error}");
        }
    }
}
