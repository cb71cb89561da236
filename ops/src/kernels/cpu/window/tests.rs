//! Random windows against the definition, and the vector code against the general one.

use super::*;
use crate::kernels::cpu::elementwise::reference::{float, integer, read, rounded, wrap};
use crate::kernels::cpu::elementwise::tests::{is_available, random_memory};
use crate::kernels::cpu::harness::{Memory, Random, execute};
use crate::lower::TensorType;

/// Elements of window `number` in a slice, in row-major order.
fn places(window: &Window, number: usize) -> Vec<usize> {
    let rank = window.input.len();
    let mut index = vec![0; rank];
    let mut rest = number;
    for axis in (0..rank).rev() {
        index[axis] = rest % window.output[axis];
        rest /= window.output[axis];
    }
    let size: usize = window.window.iter().product();
    let mut found = Vec::new();
    for element in 0..size {
        let (mut rest, mut at, mut step, mut inside) = (element, 0i64, 1i64, true);
        for axis in (0..rank).rev() {
            let within = rest % window.window[axis];
            rest /= window.window[axis];
            let place = (index[axis] * window.stride[axis] + within) as i64 - window.pad_low[axis] as i64;
            inside &= (0..window.input[axis] as i64).contains(&place);
            at += place * step;
            step *= window.input[axis] as i64;
        }
        if inside {
            found.push(at as usize);
        }
    }
    found
}

fn larger(dtype: DType, a: u64, b: u64) -> bool {
    if dtype.is_float() {
        let (a, b) = (float(dtype, a), float(dtype, b));
        a > b || a.is_nan() && !b.is_nan()
    } else {
        integer(dtype, a) > integer(dtype, b)
    }
}

/// The result by the definition, as numbers (floats) or wrapped integers.
pub(crate) fn expected(window: &Window, x: &[u64], other: &[u64]) -> Vec<f64> {
    let dtype = window.dtype;
    let number = |bits: u64| if dtype.is_float() { float(dtype, bits) } else { integer(dtype, bits) as f64 };
    let (slice, windows) = (window.input.iter().product::<usize>(), window.output.iter().product::<usize>());
    let spread = matches!(window.kind, WindowKind::ScatterToMax | WindowKind::Spread);
    let mut out = vec![0.0; window.outer * if spread { slice } else { windows }];
    for outer in 0..window.outer {
        for n in 0..windows {
            let places: Vec<usize> = places(window, n).iter().map(|place| outer * slice + place).collect();
            let best = || {
                places
                    .iter()
                    .copied()
                    .reduce(|best, at| if larger(dtype, x[at], x[best]) { at } else { best })
            };
            let at = outer * windows + n;
            match window.kind {
                WindowKind::Max => out[at] = number(x[best().expect("windows hold an element")]),
                WindowKind::Sum => out[at] = places.iter().map(|place| number(x[*place])).sum(),
                WindowKind::GatherAtMax => out[at] = number(other[best().expect("windows hold an element")]),
                WindowKind::ScatterToMax => {
                    out[best().expect("windows hold an element")] += number(other[at])
                }
                WindowKind::Spread => places.iter().for_each(|place| out[*place] += number(other[at])),
            }
        }
    }
    out
}

fn check(window: &Window, x: &Memory, other: &Memory, context: &str) {
    let dtype = window.dtype;
    let bits = |memory: &Memory| -> Vec<u64> {
        (0..memory.bytes().len() / dtype.size()).map(|at| read(memory.bytes(), dtype, at)).collect()
    };
    let expected = expected(window, &bits(x), &bits(other));
    let tensor =
        |memory: &Memory| (TensorType::new(dtype, &[memory.bytes().len() / dtype.size()]), memory.clone());
    let inputs = match window.kind {
        WindowKind::Max | WindowKind::Sum => vec![tensor(x)],
        WindowKind::Spread => vec![tensor(other)],
        _ => vec![tensor(x), tensor(other)],
    };
    let outputs = [TensorType::new(dtype, &[expected.len()])];
    let op = KernelOp::Window(window.clone());
    // A few additions in f32, and one rounding.
    let relative = match dtype {
        DType::F16 => 2f64.powi(-9),
        DType::BF16 => 2f64.powi(-6),
        _ => 1e-5,
    };
    for variant in variants().iter().filter(|variant| is_available(variant)) {
        let got = execute(variant, &op, &inputs, &outputs, &[], &[])
            .unwrap_or_else(|error| panic!("{context}: {error} for {op:?}"));
        for (at, expected) in expected.iter().enumerate() {
            let got = read(got[0].bytes(), dtype, at);
            let same = if dtype.is_float() {
                let got = float(dtype, got);
                got == *expected
                    || got.is_nan() && expected.is_nan()
                    || (got - expected).abs() <= relative * (expected.abs() + 16.0)
                    || got == float(dtype, rounded(dtype, *expected))
            } else {
                got == wrap(dtype, *expected as i128)
            };
            assert!(same, "{context}, {}: {got:#x} at {at}, expected {expected} for {op:?}", variant.name);
        }
    }
}

pub(crate) fn random_window(random: &mut Random) -> Option<Window> {
    let rank = random.below(4);
    let mut window = Window {
        kind: random.pick(&WindowKind::ALL),
        outer: random.pick(&[0, 1, 3, 7]),
        input: Vec::new(),
        output: Vec::new(),
        window: Vec::new(),
        stride: Vec::new(),
        pad_low: Vec::new(),
        pad_high: Vec::new(),
        dtype: random.pick(&[
            DType::F32,
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F64,
            DType::I32,
            DType::U8,
        ]),
    };
    for _ in 0..rank {
        let (input, size) = (1 + random.below(11), 1 + random.below(4));
        let (stride, low, high) = (1 + random.below(4), random.below(size), random.below(size));
        let output = (input + low + high).checked_sub(size)? / stride + 1;
        window.input.push(input);
        window.window.push(size);
        window.stride.push(stride);
        window.pad_low.push(low);
        window.pad_high.push(high);
        window.output.push(output);
    }
    Some(window)
}

#[test]
fn random_windows_match_the_definition() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let Some(window) = random_window(&mut random) else { continue };
        let slice = window.outer * window.input.iter().product::<usize>();
        let windows = window.outer * window.output.iter().product::<usize>();
        let others = if window.kind == WindowKind::GatherAtMax { slice } else { windows };
        let small = |random: &mut Random, n: usize| {
            // Few distinct values, so that windows have several largest elements.
            let bytes: Vec<u8> = (0..n)
                .flat_map(|_| {
                    let value = (random.below(5)) as f64 + f64::from(window.dtype.is_float()) * 0.5;
                    let bits = crate::cluster::Literal::new(window.dtype, value).bits;
                    bits.to_le_bytes()[..window.dtype.size()].to_vec()
                })
                .collect();
            Memory::new(&bytes)
        };
        let (x, other) = (small(&mut random, slice), small(&mut random, others));
        check(&window, &x, &other, &format!("seed {seed}"));
    }
}

#[test]
fn pooling_by_two_matches_the_definition_on_every_size_and_with_nan() {
    let mut random = Random::new(2);
    for (height, width) in
        [(28, 28), (8, 8), (4, 4), (14, 14), (5, 7), (2, 3), (1, 4), (3, 1), (2, 2), (6, 70)]
    {
        for kind in [WindowKind::Max, WindowKind::ScatterToMax] {
            for outer in [1, 5, 67] {
                let window = Window {
                    kind,
                    outer,
                    input: vec![height, width],
                    output: vec![height / 2, width / 2],
                    window: vec![2, 2],
                    stride: vec![2, 2],
                    pad_low: vec![0, 0],
                    pad_high: vec![0, 0],
                    dtype: DType::F32,
                };
                let x = random_memory(&mut random, DType::F32, outer * height * width);
                let values = random_memory(&mut random, DType::F32, outer * (height / 2) * (width / 2));
                check(&window, &x, &values, &format!("{height} x {width}"));
            }
        }
    }
}

#[test]
fn a_window_of_padding_alone_is_refused() {
    let window = Window {
        kind: WindowKind::Max,
        outer: 1,
        input: vec![4],
        output: vec![3],
        window: vec![2],
        stride: vec![2],
        pad_low: vec![2],
        pad_high: vec![0],
        dtype: DType::F32,
    };
    let error = Plan::new(Isa::Portable, &window).expect_err("must be refused");
    assert!(error.to_string().contains("padding only"), "{error}");
}
