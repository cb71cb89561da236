//! Padding, sliding windows, and the limits of launches.

use super::runner;
use crate::cluster::{Cluster, Literal, View};
use crate::kernels::cpu::elementwise::reference::{float, read};
use crate::kernels::cpu::elementwise::tests::random_memory;
use crate::kernels::cpu::harness::{Memory, Random};
use crate::kernels::cpu::window::tests::{expected as window_expected, random_window};
use crate::kernels::gpu::{Language, variants};
use crate::lower::{KernelOp, LowerRequest, Pad, TensorType, WindowKind};
use halite_hal::{DType, DeviceId, DeviceInfo};
use halite_profiles::Parameters;

#[test]
fn random_windows_match_the_definition() {
    let Some(runner) = runner() else { return };
    let mut tried = 0;
    for seed in 0..runner.cases(90) {
        let mut random = Random::new(seed);
        let Some(window) = random_window(&mut random) else { continue };
        let dtype = window.dtype;
        if window.outer == 0 || dtype == DType::F64 && !runner.has_f64() {
            continue;
        }
        let slice = window.outer * window.input.iter().product::<usize>();
        let windows = window.outer * window.output.iter().product::<usize>();
        let others = if window.kind == WindowKind::GatherAtMax { slice } else { windows };
        // Quarters, so that sums are exact; a NaN now and then where it stays where it is.
        let is_choice = matches!(window.kind, WindowKind::Max | WindowKind::GatherAtMax);
        let mut elements = |count: usize, with_nan: bool| {
            let bytes = (0..count).flat_map(|_| {
                let value = f64::from(random.below(64) as u32) / if dtype.is_float() { 4.0 } else { 1.0 };
                let is_nan = with_nan && dtype.is_float() && random.below(9) == 0;
                let bits = Literal::new(dtype, if is_nan { f64::NAN } else { value }).bits;
                bits.to_le_bytes()[..dtype.size()].to_vec()
            });
            Memory::new(&bytes.collect::<Vec<u8>>())
        };
        let (x, other) = (elements(slice, is_choice), elements(others, false));
        let bits = |memory: &Memory| -> Vec<u64> {
            (0..memory.bytes().len() / dtype.size()).map(|at| read(memory.bytes(), dtype, at)).collect()
        };
        let expected = window_expected(&window, &bits(&x), &bits(&other));
        let tensor = |memory: &Memory, count: usize| (TensorType::new(dtype, &[count]), memory.clone());
        let inputs = match window.kind {
            WindowKind::Max | WindowKind::Sum => vec![tensor(&x, slice)],
            WindowKind::Spread => vec![tensor(&other, others)],
            _ => vec![tensor(&x, slice), tensor(&other, others)],
        };
        let outputs = [TensorType::new(dtype, &[expected.len()])];
        let sizes = Parameters::default().with_threads([32]);
        let op = KernelOp::Window(window);
        let variant = if seed % 3 == 1 { "precompiled" } else { "plain" };
        let got = runner.run(variant, &sizes, &op, &inputs, &outputs);
        let got = got.unwrap_or_else(|reason| panic!("seed {seed}: {reason} for {op:?}"));
        for (at, &expected) in expected.iter().enumerate() {
            let got = Literal { dtype, bits: read(got[0].bytes(), dtype, at) }.to_f64();
            // Sums of more than 8 bits are rounded in bf16.
            let expected = Literal::new(dtype, expected).to_f64();
            let wraps = !dtype.is_float() && dtype.size() == 1;
            assert!(
                got == expected
                    || got.is_nan() && expected.is_nan()
                    || wraps && (got - expected) % 256.0 == 0.0,
                "seed {seed}: {got} at {at}, expected {expected} for {op:?}"
            );
        }
        tried += 1;
    }
    assert!(tried > 10, "only {tried} windows were tried");
}

#[test]
fn a_window_of_padding_alone_is_refused() {
    let Some(runner) = runner() else { return };
    let window = crate::lower::Window {
        kind: WindowKind::Max,
        outer: 1,
        input: vec![3],
        output: vec![3],
        window: vec![2],
        stride: vec![2],
        pad_low: vec![2],
        pad_high: vec![2],
        dtype: DType::F32,
    };
    let inputs = [(TensorType::new(DType::F32, &[3]), Memory::poisoned(12))];
    let outputs = [TensorType::new(DType::F32, &[3])];
    let op = KernelOp::Window(window);
    let answer = runner.lower("plain", &Parameters::default(), &op, &inputs, &outputs);
    assert!(answer.expect_err("the first window holds no element").to_string().contains("padding alone"));
}

#[test]
fn padding_widens_cuts_and_spreads_bit_by_bit() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(4);
    for (input, low, high, interior) in [
        (vec![4, 5], vec![1, -1], vec![0, 3], vec![0, 2]),
        (vec![7], vec![-2], vec![-3], vec![0]),
        (vec![2, 3, 4], vec![2, 0, -1], vec![1, -2, 5], vec![3, 0, 1]),
        (vec![], vec![], vec![], vec![]),
    ] {
        let axes = input.len();
        let output: Vec<usize> = (0..axes)
            .map(|axis| {
                let spread = input[axis] + interior[axis] * (input[axis] - 1);
                (spread as i64 + low[axis] + high[axis]) as usize
            })
            .collect();
        for dtype in [DType::U8, DType::F16, DType::F32, DType::F64] {
            let count: usize = input.iter().product();
            let x = random_memory(&mut random, dtype, count);
            let value = Literal::new(dtype, 3.0);
            let pad = Pad {
                input: input.clone(),
                output: output.clone(),
                low: low.clone(),
                high: high.clone(),
                interior: interior.clone(),
                value,
            };
            let inputs = [(TensorType::new(dtype, &input), x.clone())];
            let outputs = [TensorType::new(dtype, &output)];
            // Elements move as bits, so f64 needs no feature.
            let op = KernelOp::Pad(pad);
            let general = runner.run("precompiled", &Parameters::default(), &op, &inputs, &outputs);
            let got = runner.run("plain", &Parameters::default(), &op, &inputs, &outputs);
            let got = got.expect("padding is served");
            assert_eq!(general.expect("padding is served")[0].bytes(), got[0].bytes(), "{dtype}");
            let points: usize = output.iter().product();
            for point in 0..points {
                let (mut rest, mut place, mut step, mut inside) = (point as i64, 0, 1, true);
                for axis in (0..axes).rev() {
                    let from = rest % output[axis] as i64 - low[axis];
                    rest /= output[axis] as i64;
                    let gap = interior[axis] as i64 + 1;
                    inside &= from >= 0 && from % gap == 0 && from / gap < input[axis] as i64;
                    place += from / gap * step;
                    step *= input[axis] as i64;
                }
                let expected = if inside { read(x.bytes(), dtype, place as usize) } else { value.bits };
                let got = read(got[0].bytes(), dtype, point);
                assert_eq!(got, expected, "{dtype} at {point} ({})", float(DType::F64, got));
            }
        }
    }
}

/// A device that has not been probed: nothing is launched on it.
fn small_device(change: impl Fn(&mut DeviceInfo)) -> DeviceInfo {
    let mut device = DeviceInfo::new(DeviceId::new("opencl", 0), "small");
    device.limits.max_workgroup = [64; 3];
    device.limits.max_workgroup_threads = 64;
    device.limits.local_memory_bytes = 32 << 10;
    change(&mut device);
    device
}

/// What the first variant of OpenCL C for a copy of `points` elements of `dtype` answers.
fn copy_on(device: &DeviceInfo, dtype: DType, points: usize, computes: bool) -> Result<[u32; 3], String> {
    let mut cluster = Cluster::copy(&[points], View::contiguous(dtype, &[points]));
    if computes {
        let op = crate::cluster::StepOp::Binary(crate::cluster::BinaryOp::Add, 0, 0);
        cluster.steps.push(crate::cluster::Step { op, dtype });
        cluster.outputs = vec![1];
    }
    let op = KernelOp::Elementwise(cluster);
    let tensors = [TensorType::new(dtype, &[points])];
    let parameters = Parameters::default().with_threads([256]);
    let request = LowerRequest {
        op: &op,
        inputs: &tensors,
        outputs: &tensors,
        parameters: &parameters,
        local_staging: None,
        device,
    };
    let variant = variants()
        .into_iter()
        .find(|v| v.op == "elementwise" && v.format == Language::OpenClC.format())
        .expect("there is one");
    let lowered = (variant.lower)(&request).map_err(|reason| reason.to_string())?;
    Ok(lowered.launches[0].grid)
}

#[test]
fn workgroups_and_grids_stay_within_the_devices_limits() {
    let device = small_device(|_| ());
    assert_eq!(copy_on(&device, DType::F32, 640, false), Ok([10, 1, 1]));
    let narrow = small_device(|device| device.limits.max_grid = [100, 7, 1]);
    assert_eq!(copy_on(&narrow, DType::F32, 64 * 100, false), Ok([100, 1, 1]));
    assert_eq!(copy_on(&narrow, DType::F32, 64 * 101, false), Ok([51, 2, 1]));
    assert_eq!(copy_on(&narrow, DType::F32, 64 * 700, false), Ok([100, 7, 1]));
    let reason = copy_on(&narrow, DType::F32, 64 * 700 + 1, false).expect_err("the grid is too small");
    assert!(reason.contains("701 workgroups"), "{reason}");
    let few_args = small_device(|device| device.limits.max_args = 1);
    let reason = copy_on(&few_args, DType::F32, 4, false).expect_err("a copy has two arguments");
    assert!(reason.contains("the device takes 1"), "{reason}");
}

#[test]
fn f64_is_moved_everywhere_and_computed_where_the_device_has_it() {
    let without = small_device(|_| ());
    let with = small_device(|device| device.features.push("fp64".into()));
    assert!(copy_on(&without, DType::F64, 4, false).is_ok());
    let reason = copy_on(&without, DType::F64, 4, true).expect_err("it has no f64");
    assert!(reason.contains("fp64"), "{reason}");
    assert!(copy_on(&with, DType::F64, 4, true).is_ok());
}
