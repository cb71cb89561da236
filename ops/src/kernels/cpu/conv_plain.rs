//! Convolutions that have no tuned kernel: integers, and any number of spatial axes.
//!
//! Computes each element of the result on its own, as the definition says. Launch: workgroups of `SHARE` elements.

use crate::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest,
    Lowered, Unservable,
};
use half::{bf16, f16};
use halite_hal::{Access, ArgType, DType, Element, KernelSource, NativeKernel, Signature, Workgroup};

/// Elements of the result per workgroup.
const SHARE: usize = 256;

/// The variant `plain` of `conv_general`, which serves what no other does.
pub fn variants() -> Vec<KernelVariant> {
    let plain = KernelVariant::new("conv_general", "plain", "native", &[], |request| {
        let KernelOp::Conv(conv) = request.op else {
            return Err(Unservable::new(format!("{} is no convolution", request.op.name())));
        };
        match (conv.dtype, conv.out_dtype) {
            (DType::F32, DType::F32) => launch::<f32, f32>(conv, request),
            (DType::F64, DType::F64) => launch::<f64, f64>(conv, request),
            (DType::F16, DType::F16) => launch::<f16, f16>(conv, request),
            (DType::F16, DType::F32) => launch::<f16, f32>(conv, request),
            (DType::BF16, DType::BF16) => launch::<bf16, bf16>(conv, request),
            (DType::BF16, DType::F32) => launch::<bf16, f32>(conv, request),
            (DType::I8, DType::I8) => launch::<i8, i8>(conv, request),
            (DType::U8, DType::U8) => launch::<u8, u8>(conv, request),
            (DType::I16, DType::I16) => launch::<i16, i16>(conv, request),
            (DType::U16, DType::U16) => launch::<u16, u16>(conv, request),
            (DType::I32, DType::I32) => launch::<i32, i32>(conv, request),
            (DType::U32, DType::U32) => launch::<u32, u32>(conv, request),
            (DType::I64, DType::I64) => launch::<i64, i64>(conv, request),
            (DType::U64, DType::U64) => launch::<u64, u64>(conv, request),
            (dtype, out) => {
                Err(Unservable::new(format!("no convolution of {dtype} gives {out}; cast first")))
            }
        }
    });
    vec![plain.with_sizes([])]
}

/// How elements are multiplied and summed.
trait Term: Element {
    type Sum: Copy;
    const ZERO: Self::Sum;
    fn add_product(sum: Self::Sum, a: Self, b: Self) -> Self::Sum;
    fn add(sum: Self::Sum, value: Self) -> Self::Sum;
    /// `max(sum, 0)`; NaN stays NaN.
    fn relu(sum: Self::Sum) -> Self::Sum;
}

/// How a sum is stored.
trait Stored<Sum>: Element {
    fn stored(sum: Sum) -> Self;
}

macro_rules! float_terms {
    ($($ty:ty: $sum:ty, $widen:expr, $narrow:expr);* $(;)?) => {$(
        impl Term for $ty {
            type Sum = $sum;
            const ZERO: $sum = 0.0;
            fn add_product(sum: $sum, a: Self, b: Self) -> $sum {
                let widen: fn($ty) -> $sum = $widen;
                widen(a).mul_add(widen(b), sum)
            }
            fn add(sum: $sum, value: Self) -> $sum {
                let widen: fn($ty) -> $sum = $widen;
                sum + widen(value)
            }
            fn relu(sum: $sum) -> $sum {
                if sum <= 0.0 { 0.0 } else { sum }
            }
        }
        impl Stored<$sum> for $ty {
            fn stored(sum: $sum) -> Self {
                let narrow: fn($sum) -> $ty = $narrow;
                narrow(sum)
            }
        }
    )*};
}

float_terms! {
    f32: f32, |v| v, |v| v;
    f64: f64, |v| v, |v| v;
    f16: f32, f16::to_f32, f16::from_f32;
    bf16: f32, bf16::to_f32, bf16::from_f32;
}

macro_rules! integer_terms {
    ($($ty:ty),*) => {$(
        impl Term for $ty {
            type Sum = $ty;
            const ZERO: $ty = 0;
            fn add_product(sum: $ty, a: Self, b: Self) -> $ty {
                sum.wrapping_add(a.wrapping_mul(b))
            }
            fn add(sum: $ty, value: Self) -> $ty {
                sum.wrapping_add(value)
            }
            fn relu(sum: $ty) -> $ty {
                sum.max(0)
            }
        }
        impl Stored<$ty> for $ty {
            fn stored(sum: $ty) -> Self {
                sum
            }
        }
    )*};
}

integer_terms! { i8, u8, i16, u16, i32, u32, i64, u64 }

fn launch<T, O>(conv: &Conv, request: &LowerRequest<'_>) -> Result<Lowered, Unservable>
where
    T: Term,
    O: Stored<T::Sum>,
{
    let g = &conv.geometry;
    let axes = g.kernel.len();
    if [g.input.len(), g.output.len(), g.stride.len(), g.dilation.len(), g.pad_low.len()] != [axes; 5] {
        return Err(Unservable::new("the geometry names different numbers of spatial axes"));
    }
    let is_output = conv.operand == ConvOperand::Output;
    if !is_output && (conv.epilogue.bias.is_some() || conv.epilogue.relu) {
        return Err(Unservable::new("a gradient takes no bias and no relu"));
    }
    let has_bias = match conv.epilogue.bias {
        None => false,
        Some(BiasAxis::Channel) => true,
        Some(_) => return Err(Unservable::new("a convolution adds its bias per channel")),
    };
    let result = sizes(g, conv.operand);
    let operands = match conv.operand {
        ConvOperand::Output => [ConvOperand::Input, ConvOperand::Filter],
        ConvOperand::Input => [ConvOperand::Output, ConvOperand::Filter],
        ConvOperand::Filter => [ConvOperand::Output, ConvOperand::Input],
    };
    let expected: Vec<usize> = operands
        .iter()
        .map(|&operand| sizes(g, operand).iter().product())
        .chain(has_bias.then_some(g.out_channels))
        .collect();
    let given: Vec<usize> = request.inputs.iter().map(|input| input.elements()).collect();
    let elements: usize = result.iter().product();
    if given != expected || request.outputs[0].elements() != elements || g.groups == 0 {
        return Err(Unservable::new(format!("operands of {given:?} elements where {expected:?} are needed")));
    }
    let groups = u32::try_from(elements.div_ceil(SHARE))
        .map_err(|_| Unservable::new("the result needs more workgroups than a grid holds"))?;
    let read = ArgType::Buffer { dtype: T::DTYPE, access: Access::Read };
    let mut types = vec![read; given.len()];
    types.push(ArgType::Buffer { dtype: O::DTYPE, access: Access::Write });
    let name = format!("conv_general_{}_plain", T::DTYPE);
    let (conv, out) = (conv.clone(), given.len());
    let kernel = NativeKernel::new(name, Signature::new(types), move |group: &mut Workgroup<'_>| {
        let (first, second) = (group.read::<T>(0)?, group.read::<T>(1)?);
        let bias = if has_bias { Some(group.read::<T>(2)?) } else { None };
        let start = group.linear_index() as usize * SHARE;
        let chunk = group.write_chunk::<O>(out, SHARE)?;
        for (at, element) in chunk.iter_mut().enumerate() {
            let index = unflattened(start + at, &result);
            let mut sum = T::ZERO;
            products(&conv.geometry, conv.operand, &index, |a, b| {
                sum = T::add_product(sum, first[a], second[b]);
            });
            if let Some(bias) = bias {
                sum = T::add(sum, bias[index[1]]);
            }
            *element = O::stored(if conv.epilogue.relu { T::relu(sum) } else { sum });
        }
        Ok(())
    });
    let mut args: Vec<LaunchArg> = (0..out).map(LaunchArg::Input).collect();
    args.push(LaunchArg::Output(0));
    Ok(Lowered::single(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args }))
}

/// Extents of an operand.
fn sizes(g: &ConvGeometry, operand: ConvOperand) -> Vec<usize> {
    let (channels, spatial) = match operand {
        ConvOperand::Output => ([g.batch, g.out_channels], &g.output),
        ConvOperand::Input => ([g.batch, g.in_channels], &g.input),
        ConvOperand::Filter => ([g.out_channels, g.in_channels / g.groups.max(1)], &g.kernel),
    };
    [&channels[..], spatial].concat()
}

/// Calls `visit` with the places of both factors, for every product that element `index` of the result sums.
fn products(g: &ConvGeometry, operand: ConvOperand, index: &[usize], mut visit: impl FnMut(usize, usize)) {
    let (per_in, per_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
    let [input, filter, output] =
        [ConvOperand::Input, ConvOperand::Filter, ConvOperand::Output].map(|operand| sizes(g, operand));
    let axes = g.kernel.len();
    match operand {
        ConvOperand::Output => {
            let (n, o, place) = (index[0], index[1], &index[2..]);
            for c in 0..per_in {
                each(&g.kernel, |tap| {
                    let source = (0..axes).map(|axis| {
                        let at = place[axis] * g.stride[axis] + tap[axis] * g.dilation[axis];
                        at.checked_sub(g.pad_low[axis]).filter(|&at| at < g.input[axis])
                    });
                    if let Some(source) = source.collect::<Option<Vec<_>>>() {
                        let x = flattened(n, o / per_out * per_in + c, &source, &input);
                        visit(x, flattened(o, c, tap, &filter));
                    }
                });
            }
        }
        ConvOperand::Input => {
            let (n, channel, place) = (index[0], index[1], &index[2..]);
            let (group, c) = (channel / per_in, channel % per_in);
            for o in group * per_out..(group + 1) * per_out {
                each(&g.kernel, |tap| {
                    let target = (0..axes).map(|axis| {
                        let at = (place[axis] + g.pad_low[axis]).checked_sub(tap[axis] * g.dilation[axis])?;
                        let whole = at.is_multiple_of(g.stride[axis]);
                        whole.then_some(at / g.stride[axis]).filter(|&at| at < g.output[axis])
                    });
                    if let Some(target) = target.collect::<Option<Vec<_>>>() {
                        visit(flattened(n, o, &target, &output), flattened(o, c, tap, &filter));
                    }
                });
            }
        }
        ConvOperand::Filter => {
            let (o, c, tap) = (index[0], index[1], &index[2..]);
            for n in 0..g.batch {
                each(&g.output, |place| {
                    let source = (0..axes).map(|axis| {
                        let at = place[axis] * g.stride[axis] + tap[axis] * g.dilation[axis];
                        at.checked_sub(g.pad_low[axis]).filter(|&at| at < g.input[axis])
                    });
                    if let Some(source) = source.collect::<Option<Vec<_>>>() {
                        let x = flattened(n, o / per_out * per_in + c, &source, &input);
                        visit(flattened(n, o, place, &output), x);
                    }
                });
            }
        }
    }
}

/// Calls `visit` with every index of `extents`, row-major.
fn each(extents: &[usize], mut visit: impl FnMut(&[usize])) {
    for flat in 0..extents.iter().product() {
        visit(&unflattened(flat, extents));
    }
}

fn unflattened(mut flat: usize, extents: &[usize]) -> Vec<usize> {
    let mut index = vec![0; extents.len()];
    for axis in (0..extents.len()).rev() {
        (index[axis], flat) = (flat % extents[axis], flat / extents[axis]);
    }
    index
}

fn flattened(outer: usize, channel: usize, spatial: &[usize], extents: &[usize]) -> usize {
    let start = outer * extents[1] + channel;
    spatial.iter().zip(&extents[2..]).fold(start, |flat, (at, extent)| flat * extent + at)
}
