//! Sliding windows against plain loops.

use halite_hal::DType;

use super::{Npu, Random, assert_close, f32_bytes, f32_values, ty};
use crate::lower::{KernelOp, Window, WindowKind};

/// Sums of at most 60 units in f32.
const TOLERANCE: f64 = 2e-6;

fn unravel(mut number: usize, sizes: &[usize]) -> Vec<usize> {
    let mut index = vec![0; sizes.len()];
    for axis in (0..sizes.len()).rev() {
        index[axis] = number % sizes[axis];
        number /= sizes[axis];
    }
    index
}

/// The places in x (over all planes) of each window's elements, row-major.
fn windows(w: &Window) -> Vec<Vec<usize>> {
    let count = |sizes: &[usize]| sizes.iter().product::<usize>();
    let mut all = Vec::new();
    for plane in 0..w.outer {
        for position in 0..count(&w.output) {
            let corner = unravel(position, &w.output);
            let mut places = Vec::new();
            for tap in 0..count(&w.window) {
                let tap = unravel(tap, &w.window);
                let mut place = Some(plane);
                for axis in 0..w.input.len() {
                    let at = (corner[axis] * w.stride[axis] + tap[axis])
                        .checked_sub(w.pad_low[axis])
                        .filter(|&at| at < w.input[axis]);
                    place = place.zip(at).map(|(place, at)| place * w.input[axis] + at);
                }
                places.extend(place);
            }
            all.push(places);
        }
    }
    all
}

fn first_max(places: &[usize], x: &[f32]) -> usize {
    let mut best = places[0];
    for &place in places {
        let is_greater = x[place] > x[best] || x[place].is_nan() && !x[best].is_nan();
        if is_greater {
            best = place;
        }
    }
    best
}

fn check(npu: &Npu, window: &Window, random: &mut Random) {
    let (inputs, outputs) = (
        window.outer * window.input.iter().product::<usize>(),
        window.outer * window.output.iter().product::<usize>(),
    );
    // Few values, so that windows have several greatest elements, and some that are not ordinary.
    let x: Vec<f32> = (0..inputs)
        .map(|_| match random.below(40) {
            0 => f32::NAN,
            1..=4 => f32::NEG_INFINITY,
            n => (n % 7) as f32 - 3.0,
        })
        .collect();
    let (values, source) = (random.units(outputs), random.units(inputs));
    let all = windows(window);
    let (mut expected, buffers) = match window.kind {
        WindowKind::Max | WindowKind::Sum => (vec![0.0; outputs], vec![&x]),
        WindowKind::GatherAtMax => (vec![0.0; outputs], vec![&x, &source]),
        WindowKind::ScatterToMax => (vec![0.0; inputs], vec![&x, &values]),
        WindowKind::Spread => (vec![0.0; inputs], vec![&values]),
    };
    for (o, places) in all.iter().enumerate() {
        match window.kind {
            WindowKind::Max => expected[o] = f64::from(x[first_max(places, &x)]),
            WindowKind::Sum => expected[o] = places.iter().map(|&place| f64::from(x[place])).sum(),
            WindowKind::GatherAtMax => expected[o] = f64::from(source[first_max(places, &x)]),
            WindowKind::ScatterToMax => expected[first_max(places, &x)] += f64::from(values[o]),
            WindowKind::Spread => places.iter().for_each(|&place| expected[place] += f64::from(values[o])),
        }
    }
    let inputs: Vec<Vec<u8>> = buffers.into_iter().map(|values| f32_bytes(values)).collect();
    let op = KernelOp::Window(window.clone());
    let results = npu.run(&op, &inputs, &[ty(DType::F32, &[expected.len()])], &[]);
    assert_close(&f32_values(&results[0]), &expected, TOLERANCE, 1.0, &format!("{op:?}"));
}

fn window(outer: usize, input: &[usize], window: &[usize], stride: &[usize], pad: &[[usize; 2]]) -> Window {
    let output = (0..input.len())
        .map(|axis| (input[axis] + pad[axis][0] + pad[axis][1] - window[axis]) / stride[axis] + 1)
        .collect();
    Window {
        kind: WindowKind::Max,
        outer,
        input: input.to_vec(),
        output,
        window: window.to_vec(),
        stride: stride.to_vec(),
        pad_low: pad.iter().map(|pad| pad[0]).collect(),
        pad_high: pad.iter().map(|pad| pad[1]).collect(),
        dtype: DType::F32,
    }
}

#[test]
fn windows_of_all_kinds_and_shapes_agree() {
    let mut random = Random::new(31);
    let none = [0, 0];
    let cases = [
        window(1, &[1], &[1], &[1], &[none]),
        window(3, &[], &[], &[], &[]),
        window(64, &[8, 8], &[2, 2], &[2, 2], &[none, none]),
        window(1000, &[4, 4], &[2, 2], &[2, 2], &[none, none]),
        window(5, &[7, 9], &[3, 3], &[1, 2], &[[1, 1], [1, 1]]),
        window(2, &[13], &[4], &[3], &[[2, 3]]),
        window(7, &[5, 6, 7], &[2, 3, 2], &[2, 1, 3], &[[1, 0], [0, 2], [1, 1]]),
        // Windows that leave elements out, and planes that need strips.
        window(3, &[11, 12], &[2, 2], &[5, 4], &[none, none]),
        window(2, &[150, 160], &[2, 2], &[2, 2], &[none, none]),
        window(1, &[203, 101], &[3, 5], &[2, 1], &[[1, 1], [2, 2]]),
        window(1, &[97, 300], &[4, 3], &[1, 2], &[[3, 2], [1, 0]]),
    ];
    for cores in [1, 48] {
        let npu = Npu::new(cores);
        for case in &cases {
            for kind in WindowKind::ALL {
                check(&npu, &Window { kind, ..case.clone() }, &mut random);
            }
        }
    }
}

#[test]
fn sums_of_halves_accumulate_in_f32() {
    let npu = Npu::new(2);
    // Added one by one in f16, ones would stay at 2048; the f32 sum of 2051 rounds to 2052.
    let mut case = window(1, &[2051], &[2051], &[1], &[[0, 0]]);
    case.kind = WindowKind::Sum;
    case.dtype = DType::F16;
    let ones: Vec<u8> = std::iter::repeat_n(half::f16::ONE.to_ne_bytes(), 2051).flatten().collect();
    let results = npu.run(&KernelOp::Window(case), &[ones], &[ty(DType::F16, &[1])], &[]);
    let sum = half::f16::from_ne_bytes([results[0][0], results[0][1]]);
    assert_eq!(sum.to_f32(), 2052.0);
}
