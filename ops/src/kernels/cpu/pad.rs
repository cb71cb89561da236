//! Padding: a dense tensor inside a larger one, with gaps between its elements, or cut at its edges.
//!
//! Launch: a grid `[groups, 1, 1]`; each workgroup writes an equal share of the result's rows. An element is moved as
//! bits, so one kernel serves all types of a size.

use super::elementwise::shares;
use super::simd::Isa;
use super::{requirements, supports};
use crate::lower::{KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, Pad, Unservable};
use halite_hal::{Access, ArgType, KernelSource, NativeKernel, Signature, Workgroup};
use std::ops::Range;
use std::sync::Arc;

/// The variants of `pad`, best first: copies are as fast in portable code as in any other.
pub fn variants() -> Vec<KernelVariant> {
    let of = |isa: Isa| {
        KernelVariant::new("pad", isa.name(), "native", requirements(isa), move |request| {
            let KernelOp::Pad(pad) = request.op else {
                return Err(Unservable::new(format!("{} is no padding", request.op.name())));
            };
            lower(isa, pad, request)
        })
        .with_sizes([])
    };
    Isa::ALL.into_iter().rev().map(of).collect()
}

/// One axis: where the elements of x lie in the result.
#[derive(Debug, Clone, Copy)]
struct Axis {
    input: usize,
    output: usize,
    low: i64,
    step: usize,
}

impl Axis {
    /// The element of x that lies at `at`.
    fn source(self, at: usize) -> Option<usize> {
        let from_first = i64::try_from(at).ok()?.checked_sub(self.low)?;
        let from_first = usize::try_from(from_first).ok()?;
        let source = from_first / self.step;
        (from_first % self.step == 0 && source < self.input).then_some(source)
    }

    /// The elements of x that lie inside the result.
    fn inside(self) -> Range<usize> {
        let step = self.step as i128;
        let first = (-i128::from(self.low)).max(0);
        let first = (first + step - 1) / step;
        let end = (self.output as i128 - i128::from(self.low) + step - 1) / step;
        let end = end.clamp(0, self.input as i128);
        first.min(end) as usize..end as usize
    }

    /// Where element `source`, which lies inside, is in the result.
    fn place(self, source: usize) -> usize {
        (i128::from(self.low) + source as i128 * self.step as i128) as usize
    }
}

#[derive(Debug)]
struct Plan {
    /// All axes but the innermost, outermost first.
    outer: Vec<Axis>,
    inner: Axis,
    rows: usize,
    value: u64,
}

fn lower(isa: Isa, pad: &Pad, request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    supports(isa)?;
    let rank = pad.input.len();
    let sizes = [pad.output.len(), pad.low.len(), pad.high.len(), pad.interior.len()];
    if let Some(other) = sizes.into_iter().find(|size| *size != rank) {
        return Err(Unservable::new(format!("the padding names {other} axes where x has {rank}")));
    }
    let mut axes = Vec::with_capacity(rank + 1);
    for axis in 0..rank {
        let (input, output) = (pad.input[axis], pad.output[axis]);
        let gaps = i128::from(pad.interior[axis] as u64) * input.saturating_sub(1) as i128;
        let expected = input as i128 + gaps + i128::from(pad.low[axis]) + i128::from(pad.high[axis]);
        if expected.max(0) != output as i128 {
            return Err(Unservable::new(format!(
                "axis {axis} is {output} long where padding makes it {expected}"
            )));
        }
        axes.push(Axis { input, output, low: pad.low[axis], step: pad.interior[axis].saturating_add(1) });
    }
    let inner = axes.pop().unwrap_or(Axis { input: 1, output: 1, low: 0, step: 1 });
    let rows: usize = axes.iter().map(|axis| axis.output).product();
    if rows * inner.output == 0 {
        return Ok(Lowered::default());
    }
    let dtype = pad.value.dtype;
    let plan = Arc::new(Plan { outer: axes, inner, rows, value: pad.value.bits });
    let (_, share) = shares(rows.saturating_mul(inner.output), 2, request.device.compute_units as usize);
    let share = share.div_ceil(inner.output).max(1);
    let groups = u32::try_from(rows.div_ceil(share))
        .map_err(|_| Unservable::new(format!("{rows} rows are more than a grid holds")))?;
    let buffer = |access| ArgType::Buffer { dtype, access };
    let signature = Signature::new(vec![buffer(Access::Read), buffer(Access::Write)]);
    let run = move |group: &mut Workgroup<'_>| match dtype.size() {
        1 => plan.run::<u8>(group, share),
        2 => plan.run::<u16>(group, share),
        4 => plan.run::<u32>(group, share),
        _ => plan.run::<u64>(group, share),
    };
    let mut kernel = NativeKernel::new(format!("pad_{dtype}_{}", isa.name()), signature, run);
    kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
    let args = vec![LaunchArg::Input(0), LaunchArg::Output(0)];
    Ok(Lowered::single(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args }))
}

/// An unsigned integer that holds an element's bits.
trait Word: halite_hal::Element {
    fn of(bits: u64) -> Self;
}

impl Word for u8 {
    fn of(bits: u64) -> Self {
        bits as u8
    }
}

impl Word for u16 {
    fn of(bits: u64) -> Self {
        bits as u16
    }
}

impl Word for u32 {
    fn of(bits: u64) -> Self {
        bits as u32
    }
}

impl Word for u64 {
    fn of(bits: u64) -> Self {
        bits
    }
}

impl Plan {
    fn run<T: Word>(&self, group: &mut Workgroup<'_>, share: usize) -> Result<(), String> {
        let first = (group.linear_index() as usize).saturating_mul(share);
        let x = group.read::<T>(0)?;
        let elements = self.outer.iter().chain([&self.inner]).map(|axis| axis.input).product::<usize>();
        if x.len() < elements {
            return Err(format!("argument 0 holds {} elements, {elements} are needed", x.len()));
        }
        let value = T::of(self.value);
        let inner = self.inner;
        let inside = inner.inside();
        let out = group.write_chunk::<T>(1, share * inner.output)?;
        for (row, out) in (first..self.rows).zip(out.chunks_exact_mut(inner.output)) {
            let Some(source) = self.source_row(row).filter(|_| !inside.is_empty()) else {
                out.fill(value);
                continue;
            };
            let x = &x[source * inner.input..(source + 1) * inner.input];
            let (begin, end) = (inner.place(inside.start), inner.place(inside.end - 1) + 1);
            if inner.step == 1 {
                out[..begin].fill(value);
                out[begin..end].copy_from_slice(&x[inside.clone()]);
                out[end..].fill(value);
            } else {
                out.fill(value);
                for (to, from) in out[begin..end].iter_mut().step_by(inner.step).zip(&x[inside.clone()]) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }

    /// The row of x that lies in row `row` of the result.
    fn source_row(&self, row: usize) -> Option<usize> {
        let (mut rest, mut source, mut size) = (row, 0, 1);
        for axis in self.outer.iter().rev() {
            source += axis.source(rest % axis.output)? * size;
            rest /= axis.output;
            size *= axis.input;
        }
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Literal;
    use crate::kernels::cpu::elementwise::reference::read;
    use crate::kernels::cpu::elementwise::tests::is_available;
    use crate::kernels::cpu::harness::{Memory, Random, execute};
    use crate::lower::TensorType;
    use halite_hal::DType;

    /// The result, element by element.
    fn expected(pad: &Pad, x: &[u8]) -> Vec<u64> {
        let (rank, dtype) = (pad.input.len(), pad.value.dtype);
        let count = pad.output.iter().product::<usize>();
        let mut out = vec![pad.value.bits; count];
        for element in 0..pad.input.iter().product::<usize>() {
            let (mut rest, mut at, mut size, mut visible) = (element, 0i64, 1i64, true);
            for axis in (0..rank).rev() {
                let index = (rest % pad.input[axis]) as i64;
                rest /= pad.input[axis];
                let place = pad.low[axis] + index * (pad.interior[axis] as i64 + 1);
                visible &= (0..pad.output[axis] as i64).contains(&place);
                at += place * size;
                size *= pad.output[axis] as i64;
            }
            if visible {
                out[at as usize] = read(x, dtype, element);
            }
        }
        out
    }

    #[test]
    fn random_paddings_match_the_definition() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let rank = random.below(4);
            let input: Vec<usize> = (0..rank).map(|_| random.pick(&[0, 1, 2, 5, 7, 64])).collect();
            let interior: Vec<usize> = (0..rank).map(|_| random.pick(&[0, 0, 1, 3])).collect();
            let mut amount = || random.pick(&[0i64, 0, 1, 5, -1, -3, -70]);
            let low: Vec<i64> = (0..rank).map(|_| amount()).collect();
            let high: Vec<i64> = (0..rank).map(|_| amount()).collect();
            let output: Vec<usize> = (0..rank)
                .map(|a| {
                    let spread = input[a] + interior[a] * input[a].saturating_sub(1);
                    (spread as i64 + low[a] + high[a]).max(0) as usize
                })
                .collect();
            let dtype = random.pick(&[DType::F32, DType::F16, DType::U8, DType::F64]);
            let n = input.iter().product::<usize>();
            let bytes: Vec<u8> = (0..n * dtype.size()).map(|_| random.bits() as u8).collect();
            let value = Literal::new(dtype, 1.5);
            let pad = Pad { input: input.clone(), output: output.clone(), low, high, interior, value };
            let expected = expected(&pad, &bytes);
            let op = KernelOp::Pad(pad);
            let inputs = [(TensorType::new(dtype, &input), Memory::new(&bytes))];
            let outputs = [TensorType::new(dtype, &output)];
            for variant in variants().iter().filter(|variant| is_available(variant)) {
                let got = execute(variant, &op, &inputs, &outputs, &[], &[]).expect("padding is served");
                for (at, expected) in expected.iter().enumerate() {
                    assert_eq!(read(got[0].bytes(), dtype, at), *expected, "seed {seed} at {at}: {op:?}");
                }
            }
        }
    }

    #[test]
    fn a_result_of_another_size_is_refused() {
        let value = Literal::new(DType::F32, 0.0);
        let (input, low, high, interior) = (vec![3], vec![1], vec![1], vec![0]);
        let op = KernelOp::Pad(Pad { input, output: vec![4], low, high, interior, value });
        let inputs = [(TensorType::new(DType::F32, &[3]), Memory::poisoned(12))];
        let variant = variants().pop().expect("there are variants");
        let outputs = [TensorType::new(DType::F32, &[4])];
        let error = execute(&variant, &op, &inputs, &outputs, &[], &[]).expect_err("must be refused");
        assert!(error.to_string().contains("axis 0 is 4 long where padding makes it 5"), "{error}");
    }
}
