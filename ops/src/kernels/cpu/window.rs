//! Sliding windows: pooling and its derivatives.
//!
//! Launch: a grid `[groups, 1, 1]`; each workgroup has an equal share of the `outer` slices, and writes every element
//! of its part of the result. Parameters: `chunk`, the elements of x per workgroup, in whole slices. Any rank, stride and padding goes through one general loop; windows of 2 x 2 over f32
//! that lie side by side have vector code (`pool.rs`). Scattered additions accumulate in the result itself, those of
//! half precision in an f32 copy of a slice in scratch memory.

mod pool;
#[cfg(test)]
pub(crate) mod tests;

use super::elementwise::shares;
use super::simd::Isa;
use super::{requirements, supports};
use crate::lower::{
    KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, Unservable, Window, WindowKind,
};
use half::{bf16, f16};
use halite_hal::{Access, ArgType, DType, Element, KernelSource, NativeKernel, Signature, Workgroup};
use halite_profiles::{Parameters, Size};
use pool::Plane;
use std::sync::Arc;

/// The variants of `window_reduce`, best first.
pub fn variants() -> Vec<KernelVariant> {
    let of = |isa: Isa| {
        KernelVariant::new("window_reduce", isa.name(), "native", requirements(isa), move |request| {
            let KernelOp::Window(window) = request.op else {
                return Err(Unservable::new(format!("{} is no sliding window", request.op.name())));
            };
            lower(isa, window, request)
        })
        .with_sizes([Size::Chunk])
        .with_candidates(chunks())
    };
    Isa::ALL.into_iter().rev().map(of).collect()
}

/// Elements per workgroup for tuning to try.
fn chunks() -> Vec<Parameters> {
    [1 << 12, 1 << 14, 1 << 16].map(|chunk| Parameters::default().with_chunk(chunk)).to_vec()
}

fn lower(isa: Isa, window: &Window, request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    supports(isa)?;
    let plan = Plan::new(isa, window)?;
    let result = plan.outer * plan.out_len();
    if result == 0 {
        return Ok(Lowered::default());
    }
    let inputs = match window.kind {
        WindowKind::Max | WindowKind::Sum | WindowKind::Spread => 1,
        WindowKind::ScatterToMax | WindowKind::GatherAtMax => 2,
    };
    let read = ArgType::Buffer { dtype: window.dtype, access: Access::Read };
    let mut types = vec![read; inputs];
    types.push(ArgType::Buffer { dtype: window.dtype, access: Access::Write });
    let mut args: Vec<LaunchArg> = (0..inputs).map(LaunchArg::Input).collect();
    args.push(LaunchArg::Output(0));

    let work = plan.windows * plan.window.iter().product::<usize>() + plan.places;
    let (_, share) = shares(plan.outer.saturating_mul(work), 1, request.device.compute_units as usize);
    let share = match request.parameters.int("chunk") {
        Some(chunk) => (chunk as usize).div_ceil(plan.places.max(1)).clamp(1, plan.outer),
        None => share.div_ceil(work.max(1)).max(1),
    };
    let groups = u32::try_from(plan.outer.div_ceil(share))
        .map_err(|_| Unservable::new(format!("{} slices are more than a grid holds", plan.outer)))?;
    let name = format!("{}_{}_{}", window.kind.name(), window.dtype, isa.name());
    let scratch_bytes = if plan.widens() { plan.places * size_of::<f32>() + 64 } else { 0 };
    let run = runner(window.dtype, Arc::new(plan), share)?;
    let mut kernel = NativeKernel::new(name, Signature::new(types), run);
    kernel.scratch_bytes = scratch_bytes;
    kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
    Ok(Lowered::single(Launch { source: KernelSource::Native(kernel), grid: [groups, 1, 1], args }))
}

type Run = Box<dyn Fn(&mut Workgroup<'_>) -> Result<(), String> + Send + Sync>;

fn runner(dtype: DType, plan: Arc<Plan>, share: usize) -> Result<Run, Unservable> {
    fn typed<T: Place>(plan: Arc<Plan>, share: usize) -> Run {
        Box::new(move |group| plan.run::<T>(group, share))
    }
    Ok(match dtype {
        DType::Bool if plan.kind != WindowKind::Max && plan.kind != WindowKind::GatherAtMax => {
            return Err(Unservable::new("bool has no sum; cast first"));
        }
        DType::Bool | DType::U8 => typed::<u8>(plan, share),
        DType::I8 => typed::<i8>(plan, share),
        DType::I16 => typed::<i16>(plan, share),
        DType::U16 => typed::<u16>(plan, share),
        DType::I32 => typed::<i32>(plan, share),
        DType::U32 => typed::<u32>(plan, share),
        DType::I64 => typed::<i64>(plan, share),
        DType::U64 => typed::<u64>(plan, share),
        DType::F16 => typed::<f16>(plan, share),
        DType::BF16 => typed::<bf16>(plan, share),
        DType::F32 => typed::<f32>(plan, share),
        DType::F64 => typed::<f64>(plan, share),
        other => return Err(Unservable::new(format!("{other} has no windows"))),
    })
}

/// Order among elements in which a NaN is larger than any number.
trait Larger: Copy {
    /// Whether `self` is larger than `other`, which came first.
    fn beats(self, other: Self) -> bool;

    /// The larger one.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other.beats(self) { other } else { self }
    }
}

/// An element that windows slide over.
trait Place: Larger + Element {
    /// What sums are computed in.
    type Sum: Copy + Default;

    fn widen(self) -> Self::Sum;
    fn narrow(sum: Self::Sum) -> Self;
    fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
}

macro_rules! integer_places {
    ($($ty:ty),*) => {$(
        impl Larger for $ty {
            #[inline(always)]
            fn beats(self, other: Self) -> bool { self > other }
        }
        impl Place for $ty {
            type Sum = $ty;
            #[inline(always)]
            fn widen(self) -> $ty { self }
            #[inline(always)]
            fn narrow(sum: $ty) -> $ty { sum }
            #[inline(always)]
            fn add(a: $ty, b: $ty) -> $ty { a.wrapping_add(b) }
        }
    )*};
}

macro_rules! float_places {
    ($($ty:ty: $sum:ty, $widen:expr, $narrow:expr;)*) => {$(
        impl Larger for $ty {
            #[inline(always)]
            fn beats(self, other: Self) -> bool { self > other || self.is_nan() && !other.is_nan() }
        }
        impl Place for $ty {
            type Sum = $sum;
            #[inline(always)]
            fn widen(self) -> $sum { $widen(self) }
            #[inline(always)]
            fn narrow(sum: $sum) -> $ty { $narrow(sum) }
            #[inline(always)]
            fn add(a: $sum, b: $sum) -> $sum { a + b }
        }
    )*};
}

integer_places! { i8, u8, i16, u16, i32, u32, i64, u64 }

float_places! {
    f32: f32, std::convert::identity, std::convert::identity;
    f64: f64, std::convert::identity, std::convert::identity;
    f16: f32, f16::to_f32, f16::from_f32;
    bf16: f32, bf16::to_f32, bf16::from_f32;
}

/// A window's request with its sizes checked.
#[derive(Debug)]
struct Plan {
    isa: Isa,
    kind: WindowKind,
    outer: usize,
    input: Vec<usize>,
    output: Vec<usize>,
    window: Vec<usize>,
    stride: Vec<usize>,
    pad_low: Vec<usize>,
    /// Elements of x in a slice, and windows of a slice.
    places: usize,
    windows: usize,
    /// Sizes of a plane, where the vector code applies.
    plane: Option<Plane>,
    dtype: DType,
}

impl Plan {
    fn new(isa: Isa, request: &Window) -> Result<Self, Unservable> {
        let rank = request.input.len();
        let Window { input, output, window, stride, pad_low, pad_high, .. } = request;
        for (what, sizes) in [
            ("output", output),
            ("window", window),
            ("stride", stride),
            ("pad_low", pad_low),
            ("pad_high", pad_high),
        ] {
            if sizes.len() != rank {
                return Err(Unservable::new(format!("{what} has {} axes where x has {rank}", sizes.len())));
            }
        }
        let product = |sizes: &[usize]| {
            let product = sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
            product.filter(|n| *n < 1 << 48).ok_or_else(|| Unservable::new(format!("{sizes:?} is too large")))
        };
        let (places, windows) = (product(input)?, product(output)?);
        product(&[product(window)?.max(1), windows.max(1), request.outer.max(1)])?;
        product(&[places.max(1), request.outer.max(1)])?;
        for axis in 0..rank {
            if window[axis] == 0 || stride[axis] == 0 {
                return Err(Unservable::new(format!("axis {axis} has a window or stride of 0")));
            }
            // The first and the last window hold an element of x; then all between them do.
            let last = (output[axis].max(1) - 1).checked_mul(stride[axis]);
            let inside = last.is_some_and(|last| last < pad_low[axis] + input[axis]);
            if output[axis] > 0 && (!inside || window[axis] <= pad_low[axis]) && windows > 0 {
                return Err(Unservable::new(format!("a window of axis {axis} holds padding only")));
            }
        }
        let flat = rank == 2
            && request.dtype == DType::F32
            && window[..] == [2, 2]
            && stride[..] == [2, 2]
            && pad_low[..] == [0, 0]
            && output[0] == input[0] / 2
            && output[1] == input[1] / 2
            && matches!(request.kind, WindowKind::Max | WindowKind::ScatterToMax);
        Ok(Self {
            isa,
            kind: request.kind,
            outer: request.outer,
            input: input.clone(),
            output: output.clone(),
            window: window.clone(),
            stride: stride.clone(),
            pad_low: pad_low.clone(),
            places,
            windows,
            plane: flat.then(|| Plane { height: input[0], width: input[1] }),
            dtype: request.dtype,
        })
    }

    /// Whether the result is like x, rather than one element per window.
    fn is_spread(&self) -> bool {
        matches!(self.kind, WindowKind::ScatterToMax | WindowKind::Spread)
    }

    /// Elements of the result in a slice.
    fn out_len(&self) -> usize {
        if self.is_spread() { self.places } else { self.windows }
    }

    /// Whether additions need memory of a wider type.
    fn widens(&self) -> bool {
        self.is_spread() && matches!(self.dtype, DType::F16 | DType::BF16)
    }

    fn run<T: Place>(&self, group: &mut Workgroup<'_>, share: usize) -> Result<(), String> {
        let start = (group.linear_index() as usize).saturating_mul(share).min(self.outer);
        let end = start.saturating_add(share).min(self.outer);
        let scratch = group.take_scratch();
        let of = |arg: usize, len: usize| -> Result<&[T], String> {
            let all = group.read::<T>(arg)?;
            let range = start * len..end * len;
            all.get(range.clone()).ok_or_else(|| format!("argument {arg} ends before element {}", range.end))
        };
        let (x, other) = match self.kind {
            WindowKind::Max | WindowKind::Sum => (of(0, self.places)?, &[] as &[T]),
            WindowKind::Spread => (&[] as &[T], of(0, self.windows)?),
            WindowKind::ScatterToMax => (of(0, self.places)?, of(1, self.windows)?),
            WindowKind::GatherAtMax => (of(0, self.places)?, of(1, self.places)?),
        };
        let arg = match self.kind {
            WindowKind::Max | WindowKind::Sum | WindowKind::Spread => 1,
            WindowKind::ScatterToMax | WindowKind::GatherAtMax => 2,
        };
        let out = group.write_chunk::<T>(arg, share * self.out_len())?;
        if out.len() != (end - start) * self.out_len() {
            return Err(format!("argument {arg} does not hold {} slices of {}", self.outer, self.out_len()));
        }
        if let Some(plane) = self.plane
            && let (Some(x), Some(other), Some(out)) = (as_f32(x), as_f32(other), as_f32_mut(out))
        {
            match self.kind {
                WindowKind::Max => pool::largest(self.isa, plane, x, out),
                _ => pool::scatter(self.isa, plane, x, other, out),
            }
            return Ok(());
        }
        let mut walk = Walk::new(self);
        for slice in 0..end - start {
            let x = x.get(slice * self.places..(slice + 1) * self.places).unwrap_or(&[]);
            let out = &mut out[slice * self.out_len()..(slice + 1) * self.out_len()];
            match self.kind {
                WindowKind::Max => walk.each(|window, places| {
                    out[window] = x[first_largest(x, places)];
                }),
                WindowKind::Sum => walk.each(|window, places| {
                    let mut sum = T::Sum::default();
                    places(&mut |place| sum = T::add(sum, x[place].widen()));
                    out[window] = T::narrow(sum);
                }),
                WindowKind::GatherAtMax => {
                    let source = &other[slice * self.places..(slice + 1) * self.places];
                    walk.each(|window, places| out[window] = source[first_largest(x, places)]);
                }
                WindowKind::ScatterToMax | WindowKind::Spread => {
                    let values = &other[slice * self.windows..(slice + 1) * self.windows];
                    if self.widens() {
                        let pad = scratch.as_ptr().align_offset(align_of::<f32>());
                        let bytes = self.places * size_of::<f32>();
                        let Some(room) = scratch.get_mut(pad..pad + bytes) else {
                            return Err(format!(
                                "got {} bytes of scratch memory, {bytes} are needed",
                                scratch.len()
                            ));
                        };
                        // SAFETY: `room` is exclusively borrowed, aligned to f32, and holds `places` of them; any
                        // bits are a valid f32. Half-precision types alone widen, and their sums are f32.
                        let sums = unsafe {
                            std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<T::Sum>(), self.places)
                        };
                        self.spread(&mut walk, x, values, sums, |sum, value| {
                            *sum = T::add(*sum, value.widen())
                        });
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = T::narrow(*sum);
                        }
                    } else {
                        self.spread(&mut walk, x, values, out, |sum, value| {
                            *sum = T::narrow(T::add(sum.widen(), value.widen()));
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds each window's value to the places that it belongs to.
    fn spread<T: Place, S: Copy + Default>(
        &self,
        walk: &mut Walk<'_>,
        x: &[T],
        values: &[T],
        sums: &mut [S],
        add: impl Fn(&mut S, T),
    ) {
        sums.fill(S::default());
        if self.kind == WindowKind::Spread {
            walk.each(|window, places| places(&mut |place| add(&mut sums[place], values[window])));
        } else {
            walk.each(|window, places| add(&mut sums[first_largest(x, places)], values[window]));
        }
    }
}

/// Visits places in order.
type Places<'a> = &'a mut dyn FnMut(&mut dyn FnMut(usize));

/// The first of the places whose element is largest.
fn first_largest<T: Larger>(x: &[T], places: Places<'_>) -> usize {
    let mut best = None;
    places(&mut |place| {
        if best.is_none_or(|best: usize| x[place].beats(x[best])) {
            best = Some(place);
        }
    });
    best.unwrap_or(0)
}

/// Goes over the windows of a slice.
struct Walk<'a> {
    plan: &'a Plan,
    window: Vec<usize>,
    /// Places of the current window, per axis.
    first: Vec<usize>,
    last: Vec<usize>,
    place: Vec<usize>,
    steps: Vec<usize>,
}

impl<'a> Walk<'a> {
    fn new(plan: &'a Plan) -> Self {
        let rank = plan.input.len();
        let mut steps = vec![1; rank];
        for axis in (1..rank).rev() {
            steps[axis - 1] = steps[axis] * plan.input[axis];
        }
        let zeros = vec![0; rank];
        Self { plan, window: zeros.clone(), first: zeros.clone(), last: zeros.clone(), place: zeros, steps }
    }

    /// Calls `visit` with the number of each window and its places inside x, in row-major order.
    fn each(&mut self, mut visit: impl FnMut(usize, Places<'_>)) {
        let plan = self.plan;
        self.window.fill(0);
        for number in 0..plan.windows {
            for axis in 0..plan.input.len() {
                let start = self.window[axis] * plan.stride[axis];
                self.first[axis] = start.saturating_sub(plan.pad_low[axis]);
                let end = (start + plan.window[axis]).saturating_sub(plan.pad_low[axis]);
                self.last[axis] = end.min(plan.input[axis]);
            }
            let (first, last, place, steps) = (&self.first, &self.last, &mut self.place, &self.steps);
            visit(number, &mut |take| {
                place.copy_from_slice(first);
                loop {
                    let base: usize = place.iter().zip(steps).map(|(at, step)| at * step).sum();
                    let run = match (first.last(), last.last()) {
                        (Some(first), Some(last)) => last - first,
                        _ => 1,
                    };
                    (base..base + run).for_each(&mut *take);
                    let mut axis = place.len().saturating_sub(1);
                    loop {
                        if axis == 0 {
                            return;
                        }
                        axis -= 1;
                        place[axis] += 1;
                        if place[axis] < last[axis] {
                            break;
                        }
                        place[axis] = first[axis];
                    }
                }
            });
            for axis in (0..self.window.len()).rev() {
                self.window[axis] += 1;
                if self.window[axis] < plan.output[axis] {
                    break;
                }
                self.window[axis] = 0;
            }
        }
    }
}

/// The elements as f32, if that is what they are.
fn as_f32<T: Element>(elements: &[T]) -> Option<&[f32]> {
    // SAFETY: T is f32 by its dtype, which only f32 has.
    (T::DTYPE == DType::F32)
        .then(|| unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), elements.len()) })
}

/// As [`as_f32`], for writing.
fn as_f32_mut<T: Element>(elements: &mut [T]) -> Option<&mut [f32]> {
    let (start, len) = (elements.as_mut_ptr(), elements.len());
    // SAFETY: as above; the borrow passes on.
    (T::DTYPE == DType::F32).then(|| unsafe { std::slice::from_raw_parts_mut(start.cast(), len) })
}
