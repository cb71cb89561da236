//! Convolutions and gradients against a reference in f64, on every instruction set that the machine has.

use super::*;

/// Unit roundoff of f32: a sum of k products is off by at most about k of them, relative to the sum of
/// magnitudes (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1).
const ROUNDOFF_F32: f64 = 5.97e-8;
/// Unit roundoff of f16, for the one rounding of a finished element.
const ROUNDOFF_F16: f64 = 4.89e-4;

trait Number: ConvElement {
    const ROUNDOFF: f64;
    const OUT_ROUNDOFF: f64;
    const NAN: Self;
    fn new(x: f64) -> Self;
    fn value(self) -> f64;
}

impl Number for f32 {
    const ROUNDOFF: f64 = ROUNDOFF_F32;
    const OUT_ROUNDOFF: f64 = ROUNDOFF_F32;
    const NAN: Self = f32::NAN;
    fn new(x: f64) -> Self {
        x as f32
    }
    fn value(self) -> f64 {
        self.into()
    }
}

impl Number for f64 {
    const ROUNDOFF: f64 = 1.2e-16;
    const OUT_ROUNDOFF: f64 = 1.2e-16;
    const NAN: Self = f64::NAN;
    fn new(x: f64) -> Self {
        x
    }
    fn value(self) -> f64 {
        self
    }
}

impl Number for f16 {
    const ROUNDOFF: f64 = ROUNDOFF_F32;
    const OUT_ROUNDOFF: f64 = ROUNDOFF_F16;
    const NAN: Self = f16::NAN;
    fn new(x: f64) -> Self {
        f16::from_f64(x)
    }
    fn value(self) -> f64 {
        self.into()
    }
}

/// A linear congruential generator (Knuth's MMIX constants), in [-1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn fill<T: Number>(&mut self, len: usize) -> Vec<T> {
        (0..len).map(|_| T::new(self.next())).collect()
    }
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        let here = isa.is_available();
        if !here {
            println!("skipped {}: this processor lacks it", isa.name());
        }
        here
    })
}

/// Tensors of one problem.
struct Tensors<T> {
    x: Vec<T>,
    w: Vec<T>,
    dy: Vec<T>,
    bias: Vec<T>,
}

fn tensors<T: Number>(spec: &ConvSpec) -> Tensors<T> {
    let mut random = Random(spec.macs() as u64 + 1);
    let [p, q] = spec.output();
    Tensors {
        x: random.fill(spec.batch * spec.in_channels * spec.input[0] * spec.input[1]),
        w: random.fill(spec.out_channels * spec.in_channels / spec.groups * spec.kernel[0] * spec.kernel[1]),
        dy: random.fill(spec.batch * spec.out_channels * p * q),
        bias: random.fill(spec.out_channels),
    }
}

/// The sum, the sum of magnitudes and the number of products of each element of a result.
type Sums = Vec<(f64, f64, usize)>;

/// All three results, each product added where it belongs.
fn reference<T: Number>(spec: &ConvSpec, t: &Tensors<T>) -> [Sums; 3] {
    let [out_h, out_w] = spec.output();
    let [in_h, in_w] = spec.input;
    let (cg, og) = (spec.in_channels / spec.groups, spec.out_channels / spec.groups);
    let mut y: Sums = vec![(0.0, 0.0, 0); t.dy.len()];
    let mut dx: Sums = vec![(0.0, 0.0, 0); t.x.len()];
    let mut dw: Sums = vec![(0.0, 0.0, 0); t.w.len()];
    let add = |sum: &mut (f64, f64, usize), product: f64| {
        *sum = (sum.0 + product, sum.1 + product.abs(), sum.2 + 1);
    };
    for n in 0..spec.batch {
        for o in 0..spec.out_channels {
            for p in 0..out_h {
                for q in 0..out_w {
                    let yi = ((n * spec.out_channels + o) * out_h + p) * out_w + q;
                    for c in 0..cg {
                        for i in 0..spec.kernel[0] {
                            for j in 0..spec.kernel[1] {
                                let h = p * spec.stride[0] + i * spec.dilation[0];
                                let w = q * spec.stride[1] + j * spec.dilation[1];
                                let (Some(h), Some(w)) =
                                    (h.checked_sub(spec.pad_low[0]), w.checked_sub(spec.pad_low[1]))
                                else {
                                    continue;
                                };
                                if h >= in_h || w >= in_w {
                                    continue;
                                }
                                let channel = o / og * cg + c;
                                let xi = ((n * spec.in_channels + channel) * in_h + h) * in_w + w;
                                let wi = ((o * cg + c) * spec.kernel[0] + i) * spec.kernel[1] + j;
                                let (x, w, dy) = (t.x[xi].value(), t.w[wi].value(), t.dy[yi].value());
                                add(&mut y[yi], x * w);
                                add(&mut dx[xi], dy * w);
                                add(&mut dw[wi], x * dy);
                            }
                        }
                    }
                    if spec.bias {
                        add(&mut y[yi], t.bias[o].value());
                    }
                    if spec.relu {
                        y[yi].0 = y[yi].0.max(0.0);
                    }
                }
            }
        }
    }
    [y, dx, dw]
}

/// Elements before and after the result that nothing may touch.
const MARGIN: usize = 64;

/// Runs every group of every phase in a scrambled order, with poisoned scratch memory and workspace.
fn run<T: Number>(plan: &ConvPlan<T>, lhs: &[T], rhs: &[T], bias: &[T], len: usize) -> Vec<T> {
    let mut out = vec![T::NAN; len + 2 * MARGIN];
    let mut scratch = vec![0xFF; plan.scratch_bytes() + 1];
    let mut workspace = vec![f32::NAN; plan.workspace_bytes() / size_of::<f32>()];
    let args = ConvArgs {
        lhs: lhs.as_ptr(),
        rhs: rhs.as_ptr(),
        bias: bias.as_ptr(),
        out: out[MARGIN..].as_mut_ptr(),
        workspace: workspace.as_mut_ptr().cast(),
    };
    for (phase, &groups) in plan.phases().iter().enumerate() {
        let mut order: Vec<u32> = (0..groups).rev().collect();
        order.rotate_left(groups as usize / 3);
        for group in order {
            scratch.fill(0xFF);
            // SAFETY: the tensors are as long as the spec says.
            unsafe { plan.run_group(phase, group, args, &mut scratch[1..]) };
        }
    }
    let untouched = |part: &[T]| part.iter().all(|x| x.value().is_nan());
    assert!(untouched(&out[..MARGIN]) && untouched(&out[MARGIN + len..]), "wrote outside of the result");
    out[MARGIN..MARGIN + len].to_vec()
}

fn check<T: Number>(isa: Isa, spec: &ConvSpec, threads: usize) {
    let t = tensors::<T>(spec);
    let expected = reference(spec, &t);
    let ops = [ConvOp::Forward, ConvOp::InputGradient, ConvOp::WeightGradient];
    for (op, expected) in ops.into_iter().zip(&expected) {
        let (lhs, rhs) = match op {
            ConvOp::Forward => (&t.x, &t.w),
            ConvOp::InputGradient => (&t.dy, &t.w),
            ConvOp::WeightGradient => (&t.x, &t.dy),
        };
        let plan = ConvPlan::<T>::new(isa, op, spec.clone(), threads);
        let got = run(&plan, lhs, rhs, &t.bias, expected.len());
        for (at, (&(sum, magnitude, count), got)) in expected.iter().zip(got).enumerate() {
            let bound =
                (count + 2) as f64 * T::ROUNDOFF * (magnitude + 1e-3) + T::OUT_ROUNDOFF * sum.abs() + 1e-7;
            let got = got.value();
            assert!((got - sum).abs() <= bound, "{isa:?} {op:?} {spec:?} at {at}: {got} is not {sum}");
        }
    }
}

fn specs() -> Vec<ConvSpec> {
    let same = ConvSpec::same;
    let mut specs = vec![
        same(3, 1, 16, [28, 28], 3),
        same(2, 16, 32, [14, 14], 3),
        same(5, 1, 16, [8, 8], 3),
        same(9, 16, 32, [4, 4], 3),
        same(2, 3, 5, [7, 11], 3),
        same(1, 1, 1, [1, 1], 1),
        same(2, 5, 17, [1, 13], 1),
        same(2, 7, 33, [5, 5], 5),
        same(0, 3, 4, [5, 5], 3),
        same(2, 0, 4, [5, 5], 3),
        same(2, 3, 0, [5, 5], 3),
        same(1, 2, 19, [37, 41], 3),
        same(1, 40, 24, [9, 50], 3),
        same(3, 40, 20, [4, 4], 3),
        same(3, 40, 33, [8, 7], 3),
    ];
    // One dimension, one row.
    specs.push(ConvSpec { kernel: [1, 5], pad_low: [0, 2], pad_high: [0, 2], ..same(2, 3, 20, [1, 31], 1) });
    // Strides with several phases in the input gradient, unequal padding, dilation.
    for (stride, dilation, kernel) in
        [([2, 2], [1, 1], [3, 3]), ([3, 2], [1, 2], [2, 3]), ([1, 3], [2, 3], [3, 1])]
    {
        for (c, o, groups) in [(4, 6, 2), (17, 32, 1), (6, 6, 6), (3, 40, 1)] {
            specs.push(ConvSpec {
                groups,
                stride,
                dilation,
                kernel,
                pad_low: [1, 0],
                pad_high: [0, 3],
                ..same(2, c, o, [11, 13], 3)
            });
        }
    }
    // A kernel larger than the input, with and without enough padding; a stride larger than the kernel.
    specs.push(ConvSpec { pad_low: [2, 2], pad_high: [2, 2], ..same(2, 2, 3, [2, 2], 5) });
    specs.push(ConvSpec { pad_low: [0, 0], pad_high: [0, 0], ..same(2, 2, 3, [2, 2], 5) });
    specs.push(ConvSpec { stride: [4, 5], ..same(2, 20, 18, [13, 17], 1) });
    // Padding wider than the kernel, and so wide that a row of outputs reads nothing else.
    specs.push(ConvSpec {
        stride: [30, 400],
        pad_low: [20, 300],
        pad_high: [0, 0],
        ..same(1, 2, 18, [3, 3], 1)
    });
    specs.push(ConvSpec { pad_low: [4, 3], pad_high: [5, 4], ..same(1, 2, 18, [3, 3], 2) });
    specs
}

#[test]
fn all_three_operations_agree_with_f64_for_f32() {
    for isa in available() {
        for spec in specs() {
            check::<f32>(isa, &spec, 2);
        }
    }
}

#[test]
fn all_three_operations_agree_with_f64_for_f16() {
    for isa in available() {
        for spec in specs() {
            check::<f16>(isa, &spec, 3);
        }
    }
}

#[test]
fn all_three_operations_agree_with_f64_for_f64() {
    for spec in specs() {
        check::<f64>(Isa::Portable, &spec, 2);
    }
}

#[test]
fn bias_and_relu_apply_to_the_forward_pass_alone() {
    for isa in available() {
        for (c, o) in [(1, 5), (9, 5), (9, 37), (40, 37)] {
            for (bias, relu) in [(true, false), (false, true), (true, true)] {
                let spec = ConvSpec { bias, relu, ..ConvSpec::same(3, c, o, [7, 9], 3) };
                check::<f32>(isa, &spec, 2);
                check::<f16>(isa, &spec, 2);
                check::<f64>(isa, &spec, 2);
            }
        }
    }
}

#[test]
fn large_images_in_bands_and_slices_agree_with_f64() {
    for isa in available() {
        check::<f32>(isa, &ConvSpec::same(1, 24, 20, [60, 70], 3), 8);
        check::<f32>(isa, &ConvSpec::same(1, 30, 70, [12, 12], 3), 8);
        check::<f32>(isa, &ConvSpec { stride: [2, 2], ..ConvSpec::same(1, 3, 33, [90, 300], 3) }, 8);
    }
}

#[test]
fn nan_reaches_exactly_the_sums_it_is_part_of() {
    for isa in available() {
        for (c, o) in [(1, 3), (10, 20)] {
            let spec = ConvSpec::same(2, c, o, [6, 7], 3);
            let mut t = tensors::<f32>(&spec);
            t.x[2 * 7 + 3] = f32::NAN; // Image 0, channel 0, row 2, column 3.
            let plan = ConvPlan::<f32>::new(isa, ConvOp::Forward, spec.clone(), 2);
            let y = run(&plan, &t.x, &t.w, &[], t.dy.len());
            for (at, y) in y.iter().enumerate() {
                let (n, p, q) = (at / (o * 42), at % 42 / 7, at % 7);
                let hit = n == 0 && p.abs_diff(2) <= 1 && q.abs_diff(3) <= 1;
                assert_eq!(y.is_nan(), hit, "{isa:?} at {at}");
            }
            let plan = ConvPlan::<f32>::new(isa, ConvOp::WeightGradient, spec, 2);
            let dw = run(&plan, &t.x, &t.dy, &[], t.w.len());
            for (at, dw) in dw.iter().enumerate() {
                assert_eq!(dw.is_nan(), at / 9 % c == 0, "{isa:?} at {at}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in available() {
        for spec in [ConvSpec::same(40, 16, 32, [9, 14], 3), ConvSpec::same(40, 1, 16, [28, 28], 3)] {
            let t = tensors::<f32>(&spec);
            for (op, lhs, rhs, len) in [
                (ConvOp::Forward, &t.x, &t.w, t.dy.len()),
                (ConvOp::InputGradient, &t.dy, &t.w, t.x.len()),
                (ConvOp::WeightGradient, &t.x, &t.dy, t.w.len()),
            ] {
                let of = |threads| {
                    let plan = ConvPlan::<f32>::new(isa, op, spec.clone(), threads);
                    run(&plan, lhs, rhs, &[], len)
                };
                let one = of(1);
                assert!(one == of(2) && one == of(64), "{isa:?} {op:?}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_window() {
    for isa in available() {
        let spec = ConvSpec::same(3, 5, 7, [19, 14], 3);
        let t = tensors::<f32>(&spec);
        for (op, lhs, rhs, len) in
            [(ConvOp::Forward, &t.x, &t.w, t.dy.len()), (ConvOp::InputGradient, &t.dy, &t.w, t.x.len())]
        {
            let of = |window| {
                let plan = ConvPlan::<f32>::with_window(isa, op, spec.clone(), 2, window);
                (run(&plan, lhs, rhs, &[], len), plan.scratch_bytes())
            };
            let (expected, most_bytes) = of(WINDOW);
            for window in [0, 1, 300, usize::MAX] {
                let (got, bytes) = of(window);
                assert!(got == expected, "{isa:?} {op:?} {window}");
                assert!(bytes <= most_bytes, "{isa:?} {op:?} {window}: {bytes} bytes");
            }
            assert!(of(1).1 < most_bytes, "{isa:?} {op:?}");
        }
    }
}
