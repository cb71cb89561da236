//! Convolutions and their gradients: from a [`Conv`] to the plans of [`conv`](super::conv).
//!
//! Launch: one launch per phase of the plan, over its groups. One and two spatial axes have plans; f32, f16 and f64
//! are convolved where they lie, bf16, and f16 with an f32 result, are converted to f32 in the workspace first. Parameters:
//! `chunk`, the elements of the input that a workgroup works on at a time; gradients of filters do not look at it.

use super::conv::{ConvArgs, ConvElement, ConvOp, ConvPlan, ConvSpec, WINDOW};
use super::elementwise::machine::argument;
use super::simd::Isa;
use super::widen::Widened;
use super::{requirements, supports};
use crate::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest,
    Lowered, Unservable,
};
use half::f16;
use halite_hal::{Access, ArgType, DType, Element, KernelSource, NativeKernel, Signature, Workgroup};
use halite_profiles::{Parameters, Size};
use std::sync::Arc;

/// The variants of `conv_general`, best first.
pub fn variants() -> Vec<KernelVariant> {
    let of = |isa: Isa| {
        KernelVariant::new("conv_general", isa.name(), "native", requirements(isa), move |request| {
            let KernelOp::Conv(conv) = request.op else {
                return Err(Unservable::new(format!("{} is no convolution", request.op.name())));
            };
            lower(isa, conv, request)
        })
        .with_sizes([Size::Chunk])
        .with_candidates(chunks())
    };
    Isa::ALL.into_iter().rev().map(of).collect()
}

/// Elements of the input per band of rows for tuning to try, from a first-level cache's to a large second-level one's.
fn chunks() -> Vec<Parameters> {
    [1 << 13, 1 << 15, 1 << 16, 1 << 18].map(|chunk| Parameters::default().with_chunk(chunk)).to_vec()
}

fn lower(isa: Isa, conv: &Conv, request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    supports(isa)?;
    let problem = Problem::new(conv, request)?;
    if problem.elements == 0 {
        return Ok(Lowered::default());
    }
    let operands: Vec<LaunchArg> = (0..problem.input_elements.len()).map(LaunchArg::Input).collect();
    let out = LaunchArg::Output(0);
    let mut work = Widened::new(isa, problem.cores);
    match (conv.dtype, conv.out_dtype) {
        (DType::F32, DType::F32) => problem.launch::<f32>(&mut work, isa, &operands, out)?,
        (DType::F16, DType::F16) => problem.launch::<f16>(&mut work, isa, &operands, out)?,
        (DType::F64, DType::F64) => problem.launch::<f64>(&mut work, isa, &operands, out)?,
        (DType::F16 | DType::BF16, DType::F32 | DType::BF16) => {
            let mut wide = Vec::with_capacity(operands.len());
            for (n, operand) in operands.iter().enumerate() {
                wide.push(work.widened(*operand, request.inputs[n].dtype, problem.input_elements[n])?);
            }
            let narrow = conv.out_dtype != DType::F32;
            let target = if narrow { work.reserve(problem.elements as u64 * 4) } else { out };
            problem.launch::<f32>(&mut work, isa, &wide, target)?;
            if narrow {
                work.convert(target, DType::F32, out, conv.out_dtype, problem.elements)?;
            }
        }
        (dtype, out_dtype) => {
            return Err(Unservable::new(format!(
                "no convolution of {dtype} with a result of {out_dtype} is written; cast to f32"
            )));
        }
    }
    Ok(work.finish())
}

/// A convolution whose sizes were checked against the buffers.
struct Problem {
    op: ConvOp,
    spec: ConvSpec,
    cores: usize,
    /// Elements of the input per band.
    window: usize,
    /// Elements of each input buffer in the order of the kernel's arguments, and of the result.
    input_elements: Vec<usize>,
    elements: usize,
}

/// Sizes beyond which products of sizes could overflow.
const LARGEST: u128 = 1 << 60;

impl Problem {
    fn new(conv: &Conv, request: &LowerRequest<'_>) -> Result<Self, Unservable> {
        let g = &conv.geometry;
        let op = match conv.operand {
            ConvOperand::Output => ConvOp::Forward,
            ConvOperand::Input => ConvOp::InputGradient,
            ConvOperand::Filter => ConvOp::WeightGradient,
        };
        let bias = match (conv.epilogue.bias, op) {
            (None, _) => false,
            (Some(BiasAxis::Channel), ConvOp::Forward) => true,
            (Some(axis), _) => {
                return Err(Unservable::new(format!(
                    "a bias per {axis:?} is not added to a {op:?} convolution"
                )));
            }
        };
        if conv.epilogue.relu && op != ConvOp::Forward {
            return Err(Unservable::new("a gradient of a convolution has no ReLU of its own"));
        }
        let spec = spec(g, bias, conv.epilogue.relu)?;
        let input = product(&[&[g.batch, g.in_channels], &g.input[..]].concat())?;
        let filter = product(&[&[g.out_channels, g.in_channels / g.groups], &g.kernel[..]].concat())?;
        let output = product(&[&[g.batch, g.out_channels], &g.output[..]].concat())?;
        let (mut needed, elements) = match op {
            ConvOp::Forward => (vec![input, filter], output),
            ConvOp::InputGradient => (vec![output, filter], input),
            ConvOp::WeightGradient => (vec![output, input], filter),
        };
        if bias {
            needed.push(g.out_channels);
        }
        let given: Vec<usize> = request.inputs.iter().map(|tensor| tensor.elements()).collect();
        if given.len() != needed.len() || given.iter().zip(&needed).any(|(given, needed)| given < needed) {
            return Err(Unservable::new(format!(
                "inputs have {given:?} elements where {needed:?} are needed"
            )));
        }
        let cores = request.device.compute_units as usize;
        let window = request.parameters.int("chunk").map_or(WINDOW, |chunk| chunk as usize);
        Ok(Self { op, spec, cores, window, input_elements: needed, elements })
    }

    fn launch<T: ConvElement + Element>(
        &self,
        work: &mut Widened,
        isa: Isa,
        operands: &[LaunchArg],
        out: LaunchArg,
    ) -> Result<(), Unservable> {
        let plan = ConvPlan::<T>::with_window(isa, self.op, self.spec.clone(), self.cores, self.window);
        let plan = Arc::new(plan);
        let buffer = |dtype, access| ArgType::Buffer { dtype, access };
        let mut types = vec![buffer(T::DTYPE, Access::Read); operands.len()];
        types.push(buffer(T::DTYPE, Access::Write));
        let mut args = [operands, &[out]].concat();
        let (workspace_bytes, scratch_bytes) = (plan.workspace_bytes(), plan.scratch_bytes());
        if workspace_bytes > 0 {
            types.push(buffer(DType::U8, Access::Write));
            args.push(work.reserve(workspace_bytes as u64));
        }
        let suffix = match self.op {
            ConvOp::Forward => "",
            ConvOp::InputGradient => "_input",
            ConvOp::WeightGradient => "_filter",
        };
        for (phase, groups) in plan.phases().iter().enumerate() {
            if *groups == 0 {
                continue;
            }
            let name = format!("conv_general{suffix}_{}_{}", T::DTYPE, isa.name());
            let (plan, op) = (Arc::clone(&plan), self.op);
            let (inputs, elements) = (self.input_elements.clone(), self.elements);
            let run = move |group: &mut Workgroup<'_>| {
                let operand = |arg: usize| -> Result<*const T, String> {
                    Ok(argument(group, arg, T::DTYPE, inputs[arg])?.cast::<T>().cast_const())
                };
                let (first, second) = (operand(0)?, operand(1)?);
                // The gradient of the filter gets the output's gradient first, its plan the input.
                let (lhs, rhs) = if op == ConvOp::WeightGradient { (second, first) } else { (first, second) };
                let bias = if inputs.len() > 2 { operand(2)? } else { std::ptr::null() };
                let out = argument(group, inputs.len(), T::DTYPE, elements)?.cast::<T>();
                let workspace = match workspace_bytes {
                    0 => std::ptr::null_mut(),
                    bytes => argument(group, inputs.len() + 1, DType::U8, bytes)?,
                };
                let index = group.index()[0];
                let args = ConvArgs { lhs, rhs, bias, out, workspace };
                let scratch = group.take_scratch();
                // SAFETY: `argument` checked every length against the sizes that `Problem::new` computed for this
                // spec; the launch check excludes that what is written overlaps another argument; phases are
                // launches in order. The workspace lies at a multiple of 64 bytes.
                unsafe { plan.run_group(phase, index, args, scratch) };
                Ok(())
            };
            let mut kernel = NativeKernel::new(name, Signature::new(types.clone()), run);
            if workspace_bytes > 0 {
                // The later phases read there what this one wrote.
                types[operands.len() + 1] = buffer(DType::U8, Access::ReadWrite);
            }
            kernel.scratch_bytes = scratch_bytes;
            kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
            let source = KernelSource::Native(kernel);
            work.push(Launch { source, grid: [*groups, 1, 1], args: args.clone() });
        }
        Ok(())
    }
}

/// The plan's view of a geometry of one or two axes.
fn spec(g: &ConvGeometry, bias: bool, relu: bool) -> Result<ConvSpec, Unservable> {
    let rank = g.input.len();
    let axes = [&g.kernel, &g.output, &g.stride, &g.dilation, &g.pad_low, &g.pad_high];
    if axes.iter().any(|sizes| sizes.len() != rank) {
        return Err(Unservable::new(format!("the sizes of a convolution over {rank} axes name other ranks")));
    }
    if rank > 2 {
        return Err(Unservable::new(format!("a convolution over {rank} axes; one or two are written")));
    }
    let positive = [&g.kernel, &g.stride, &g.dilation].into_iter().flatten().all(|size| *size > 0);
    if !positive
        || g.groups == 0
        || !g.in_channels.is_multiple_of(g.groups)
        || !g.out_channels.is_multiple_of(g.groups)
    {
        return Err(Unservable::new(
            "kernel, stride, dilation and groups must be at least 1, and channels multiples of the groups",
        ));
    }
    // A missing axis in front has one element.
    let pair = |sizes: &[usize], missing: usize| match *sizes {
        [height, width] => [height, width],
        [width] => [missing, width],
        _ => [missing; 2],
    };
    let all = [&g.input, &g.kernel, &g.output, &g.stride, &g.dilation, &g.pad_low, &g.pad_high];
    if let Some(size) = all.into_iter().flatten().find(|size| **size > 1 << 40) {
        return Err(Unservable::new(format!("a size of {size} is too large")));
    }
    let spec = ConvSpec {
        batch: g.batch,
        in_channels: g.in_channels,
        out_channels: g.out_channels,
        groups: g.groups,
        input: pair(&g.input, 1),
        kernel: pair(&g.kernel, 1),
        stride: pair(&g.stride, 1),
        dilation: pair(&g.dilation, 1),
        pad_low: pair(&g.pad_low, 0),
        pad_high: pair(&g.pad_high, 0),
        bias,
        relu,
    };
    let output = pair(&g.output, 1);
    if spec.output() != output {
        return Err(Unservable::new(format!("the output is {output:?} where {:?} follows", spec.output())));
    }
    Ok(spec)
}

fn product(sizes: &[usize]) -> Result<usize, Unservable> {
    let product = sizes.iter().try_fold(1u128, |product, size| product.checked_mul(*size as u128));
    let product = product.filter(|product| *product < LARGEST);
    product
        .and_then(|product| usize::try_from(product).ok())
        .ok_or_else(|| Unservable::new(format!("an operand of sizes {sizes:?} has too many elements")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::elementwise::reference::{float, read, rounded};
    use crate::kernels::cpu::elementwise::tests::is_available;
    use crate::kernels::cpu::harness::{Memory, Random, execute};
    use crate::lower::{Epilogue, TensorType};

    fn random_geometry(random: &mut Random) -> ConvGeometry {
        let rank = random.below(3);
        let groups = random.pick(&[1, 1, 2]);
        let mut g = ConvGeometry {
            batch: random.pick(&[1, 2, 3]),
            in_channels: groups * random.pick(&[1, 3]),
            out_channels: groups * random.pick(&[1, 2, 17]),
            groups,
            input: vec![],
            kernel: vec![],
            output: vec![],
            stride: vec![],
            dilation: vec![],
            pad_low: vec![],
            pad_high: vec![],
        };
        for _ in 0..rank {
            let (input, kernel) = (1 + random.below(9), 1 + random.below(3));
            let (stride, dilation) = (1 + random.below(2), 1 + random.below(2));
            let extent = dilation * (kernel - 1) + 1;
            let low = random.below(3);
            let high = low.max(extent.saturating_sub(input + low));
            g.input.push(input);
            g.kernel.push(kernel);
            g.stride.push(stride);
            g.dilation.push(dilation);
            g.pad_low.push(low);
            g.pad_high.push(high);
            g.output.push((input + low + high - extent) / stride + 1);
        }
        g
    }

    /// Calls `visit` with the elements of input, filter and output that are multiplied with each other.
    fn products(g: &ConvGeometry, mut visit: impl FnMut(usize, usize, usize)) {
        let flat =
            |sizes: &[usize], at: &[usize]| at.iter().zip(sizes).fold(0, |flat, (at, size)| flat * size + at);
        let unflatten = |mut flat: usize, sizes: &[usize]| {
            let mut at = vec![0; sizes.len()];
            for axis in (0..sizes.len()).rev() {
                (at[axis], flat) = (flat % sizes[axis], flat / sizes[axis]);
            }
            at
        };
        let area = |sizes: &[usize]| sizes.iter().product::<usize>();
        let (c, o) = (g.in_channels / g.groups, g.out_channels / g.groups);
        for n in 0..g.batch {
            for (out_channel, p) in
                (0..g.out_channels).flat_map(|oc| (0..area(&g.output)).map(move |p| (oc, p)))
            {
                let place = unflatten(p, &g.output);
                for (channel, tap) in (0..c).flat_map(|ch| (0..area(&g.kernel)).map(move |tap| (ch, tap))) {
                    let offset = unflatten(tap, &g.kernel);
                    let source: Option<Vec<usize>> = (0..place.len())
                        .map(|axis| {
                            let at = place[axis] * g.stride[axis] + offset[axis] * g.dilation[axis];
                            at.checked_sub(g.pad_low[axis]).filter(|at| *at < g.input[axis])
                        })
                        .collect();
                    if let Some(source) = source {
                        let in_channel = out_channel / o * c + channel;
                        let x = (n * g.in_channels + in_channel) * area(&g.input) + flat(&g.input, &source);
                        let w = (out_channel * c + channel) * area(&g.kernel) + tap;
                        visit(x, w, (n * g.out_channels + out_channel) * area(&g.output) + p);
                    }
                }
            }
        }
    }

    #[test]
    fn random_convolutions_match_the_definition_for_every_operand() {
        for seed in 0..160 {
            let mut random = Random::new(seed);
            let g = random_geometry(&mut random);
            let operand = random.pick(&[ConvOperand::Output, ConvOperand::Input, ConvOperand::Filter]);
            let (dtype, out_dtype) = random.pick(&[
                (DType::F32, DType::F32),
                (DType::F32, DType::F32),
                (DType::F16, DType::F16),
                (DType::F16, DType::F32),
                (DType::BF16, DType::BF16),
                (DType::F64, DType::F64),
            ]);
            let forward = operand == ConvOperand::Output;
            let bias = (forward && random.below(2) == 0).then_some(BiasAxis::Channel);
            let epilogue = Epilogue { bias, relu: forward && random.below(2) == 0 };
            let area = |sizes: &[usize]| sizes.iter().product::<usize>();
            let input = g.batch * g.in_channels * area(&g.input);
            let filter = g.out_channels * g.in_channels / g.groups * area(&g.kernel);
            let output = g.batch * g.out_channels * area(&g.output);
            let (mut lens, result) = match operand {
                ConvOperand::Output => (vec![input, filter], output),
                ConvOperand::Input => (vec![output, filter], input),
                ConvOperand::Filter => (vec![output, input], filter),
            };
            lens.extend(bias.map(|_| g.out_channels));
            let inputs: Vec<(TensorType, Memory)> = lens
                .iter()
                .map(|len| {
                    let bytes: Vec<u8> = (0..*len)
                        .flat_map(|_| {
                            rounded(dtype, f64::from(random.unit())).to_le_bytes()[..dtype.size()].to_vec()
                        })
                        .collect();
                    (TensorType::new(dtype, &[*len]), Memory::new(&bytes))
                })
                .collect();
            let value = |n: usize, at: usize| float(dtype, read(inputs[n].1.bytes(), dtype, at));
            let mut expected = vec![0.0; result];
            products(&g, |x, w, y| match operand {
                ConvOperand::Output => expected[y] += value(0, x) * value(1, w),
                ConvOperand::Input => expected[x] += value(0, y) * value(1, w),
                ConvOperand::Filter => expected[w] += value(0, y) * value(1, x),
            });
            if forward {
                let plane = area(&g.output);
                for (at, y) in expected.iter_mut().enumerate() {
                    *y += bias.map_or(0.0, |_| value(2, at / plane % g.out_channels));
                    *y = if epilogue.relu { y.max(0.0) } else { *y };
                }
            }
            let op = KernelOp::Conv(Conv { operand, geometry: g.clone(), dtype, out_dtype, epilogue });
            let outputs = [TensorType::new(out_dtype, &[result])];
            for variant in variants().iter().filter(|variant| is_available(variant)) {
                let got =
                    execute(variant, &op, &inputs, &outputs, &[], &[]).expect("the convolution is served");
                for (at, expected) in expected.iter().enumerate() {
                    let got = float(out_dtype, read(got[0].bytes(), out_dtype, at));
                    // Up to some hundred products of numbers below 1 in f32, and one rounding to the result's type.
                    let tolerance = match out_dtype {
                        DType::F64 => 1e-12,
                        DType::F32 => 5e-5,
                        DType::F16 => 5e-5 + expected.abs() / 1024.0,
                        _ => 5e-5 + expected.abs() / 128.0,
                    };
                    let close = (got - expected).abs() <= tolerance;
                    assert!(
                        close,
                        "seed {seed}, {}: {got} at {at}, expected {expected} for {op:?}",
                        variant.name
                    );
                }
            }
        }
    }

    #[test]
    fn an_output_of_another_size_is_refused() {
        let g = ConvGeometry {
            batch: 1,
            in_channels: 1,
            out_channels: 1,
            groups: 1,
            input: vec![5],
            kernel: vec![3],
            output: vec![5],
            stride: vec![1],
            dilation: vec![1],
            pad_low: vec![0],
            pad_high: vec![0],
        };
        let error = spec(&g, false, false).expect_err("must be refused");
        assert!(error.to_string().contains("[1, 5] where [1, 3] follows"), "{error}");
    }
}
