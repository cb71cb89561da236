//! What a user's profile may ask of the kernels: wishes that change nothing are refused, all others change the launch.

mod common;

use halite_cpu::CpuBackend;
use halite_hal::{DType, DeviceId, DeviceInfo, KernelSource, driver::Backend};
use halite_ops::cluster::{BinaryOp, Cluster, Literal, Step, StepOp, View};
use halite_ops::lower::{
    Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, KernelVariant, LowerRequest, Lowered,
    MatrixView, Pad, ReduceKind, Reduction, TensorType, Window, WindowKind,
};
use halite_ops::{Catalog, Engine, Error, grad};
use halite_profiles::{Parameters, Profile, ProfileSet, Size};
use std::sync::Arc;

const OPS: [&str; 6] = ["elementwise", "reduce", "dot_general", "conv_general", "window_reduce", "pad"];

fn cpu_info() -> DeviceInfo {
    CpuBackend::default().probe().unwrap().swap_remove(0)
}

fn npu_info() -> DeviceInfo {
    let mut info = DeviceInfo::new(DeviceId::new("npu", 0), "test");
    info.kernel_formats = vec!["npu-program".to_owned()];
    info.compute_units = 24;
    info
}

/// A user's profile with one entry, on its fifth line.
fn mine(op: &str, entry: &str) -> Arc<Profile> {
    let text = format!("name: mine\nextends: cpu\nkernels:\n  {op}:\n  - {{ {entry} }}\n");
    ProfileSet::from_texts([("mine.yaml", text.as_str())]).unwrap().by_name("mine").unwrap()
}

fn check(op: &str, entry: &str, info: &DeviceInfo) -> Result<(), String> {
    let checked = Catalog::builtin().check(&mine(op, entry), info);
    checked.map_err(|error| {
        assert!(matches!(error, Error::Profile(_)) && error.is_usage(), "{error:?}");
        error.to_string()
    })
}

#[test]
fn conditions_may_name_the_sizes_of_their_op_and_no_others() {
    for op in OPS {
        for op_of_names in OPS {
            for (name, _) in sample(op_of_names).0.variables() {
                let known = sample(op).0.variables().iter().any(|(own, _)| *own == name);
                let got = check(op, &format!("variant: portable, when: \"{name} > 3\""), &cpu_info());
                assert_eq!(got.is_ok(), known, "{op} {name}: {got:?}");
            }
        }
    }
    assert_eq!(
        check("dot_general", "variant: portable, when: zz >= 3", &cpu_info()),
        Err("mine.yaml:5: kernels.dot_general[0].when 'zz >= 3' names the unknown variable 'zz'; use one of m, n, k, \
             batch, bits"
            .to_owned())
    );
    assert_eq!(
        check("conv_general", "variant: portable, when: pixel >= 3", &cpu_info()),
        Err("mine.yaml:5: kernels.conv_general[0].when 'pixel >= 3' names the unknown variable 'pixel'; did you mean \
             'pixels'?"
            .to_owned())
    );
}

#[test]
fn conditions_of_operations_of_other_crates_have_no_sizes() {
    let mut catalog = Catalog::builtin();
    let lower = |_: &LowerRequest<'_>| Ok(Lowered::default());
    catalog.register(KernelVariant::new("other", "plain", "native", &[], lower)).unwrap();
    let check =
        |entry: &str| catalog.check(&mine("other", entry), &cpu_info()).map_err(|error| error.to_string());
    assert_eq!(check("variant: plain, when: 3 > 2"), Ok(()));
    let message = check("variant: plain, when: n > 2").unwrap_err();
    assert!(message.contains("mine.yaml:5: kernels.other[0].when 'n > 2' names the unknown"), "{message}");
    // Nothing was declared, so any size is taken.
    assert_eq!(check("variant: plain, tile: [1, 2], chunk: 3"), Ok(()));
    let declared = KernelVariant::new("other", "sized", "native", &[], lower).with_sizes([Size::Chunk]);
    catalog.register(declared).unwrap();
    let check =
        |entry: &str| catalog.check(&mine("other", entry), &cpu_info()).map_err(|error| error.to_string());
    assert_eq!(check("variant: sized, chunk: 3"), Ok(()));
    let message = check("variant: sized, tile: [3]").unwrap_err();
    assert!(message.contains("mine.yaml:5: kernels.other[0].tile is not read"), "{message}");
}

#[test]
fn sizes_that_a_kernel_does_not_read_are_refused_with_file_and_line() {
    let (cpu, npu) = (cpu_info(), npu_info());
    for (op, entry, info, problem) in [
        ("dot_general", "variant: cube, tile: [64]", &npu, "tile has 1 extent, but the kernel 'cube'"),
        (
            "dot_general",
            "variant: portable, tile: [64, 64]",
            &cpu,
            "tile has 2 extents, but the kernel 'portable'",
        ),
        ("dot_general", "variant: portable, tile: [64, 64, 64, 64]", &cpu, "tile has 4 extents"),
        ("elementwise", "variant: portable, tile: [64, 64, 64]", &cpu, "tile is not read"),
        ("elementwise", "variant: portable, threads: 4", &cpu, "threads is not read"),
        ("reduce", "variant: vector, chunk: 512, threads: [2, 2]", &npu, "threads is not read"),
        ("conv_general", "variant: plain, chunk: 512", &cpu, "chunk is not read"),
        ("conv_general", "variant: portable, tile: [1, 2, 3]", &cpu, "tile is not read"),
        ("pad", "variant: portable, unroll: 4", &cpu, "unroll is not read by the kernel 'portable'"),
    ] {
        let message = check(op, entry, info).expect_err(entry);
        assert!(message.starts_with(&format!("mine.yaml:5: kernels.{op}[0].{problem}")), "{message}");
    }
    assert_eq!(check("dot_general", "variant: cube, tile: [64, 64, 64]", &npu), Ok(()));
    assert_eq!(check("dot_general", "variant: portable, tile: [64, 64, 64]", &cpu), Ok(()));
}

/// Built-in entries are not checked when a device opens, so they are here.
#[test]
fn builtin_profiles_ask_only_for_what_kernels_read() {
    let catalog = Catalog::builtin();
    for profile in ProfileSet::builtin().iter() {
        for (op, entries) in profile.kernels() {
            for entry in entries {
                let place = format!("{} {op} {}", entry.origin(), entry.variant());
                for variant in catalog.variants_of(op).filter(|variant| variant.name == entry.variant()) {
                    let unread = variant.sizes.as_ref().and_then(|sizes| entry.parameters().unread(sizes));
                    assert_eq!(unread, None, "{place}");
                }
                let known = KernelOp::variable_names(op);
                for name in entry.when().map(|when| when.variables()).unwrap_or_default() {
                    assert!(known.contains(&name), "{place}: {name}");
                }
            }
        }
    }
}

#[test]
fn candidates_for_tuning_are_sizes_that_the_kernel_reads() {
    let catalog = Catalog::builtin();
    for op in OPS {
        for variant in catalog.variants_of(op) {
            for candidate in &variant.candidates {
                let Some(sizes) = &variant.sizes else { continue };
                assert_eq!(candidate.unread(sizes), None, "{variant:?} {candidate}");
                assert!(!candidate.is_empty(), "{variant:?}");
            }
        }
    }
}

/// What is launched, as far as it can be seen from outside.
fn fingerprint(lowered: &Lowered) -> Vec<String> {
    let launch = |launch: &halite_ops::lower::Launch| match &launch.source {
        KernelSource::Native(kernel) => format!("{:?} {} {}", launch.grid, kernel.name, kernel.scratch_bytes),
        KernelSource::Binary { bytes, .. } => format!("{:?} {bytes:?}", launch.grid),
        other => format!("{:?} {other:?}", launch.grid),
    };
    let workspace = lowered.workspace_bytes.to_string();
    lowered.launches.iter().map(launch).chain([workspace]).collect()
}

/// Two values of a size, both far from every limit of the samples below.
fn values(size: Size) -> [Parameters; 2] {
    let none = Parameters::default;
    match size {
        Size::Tile(extents) => [none().with_tile(vec![16; extents]), none().with_tile(vec![64; extents])],
        Size::Threads(extents) => {
            [none().with_threads(vec![1; extents]), none().with_threads(vec![8; extents])]
        }
        Size::Chunk => [none().with_chunk(128), none().with_chunk(2048)],
        Size::Stages => [none().with_stages(1), none().with_stages(2)],
        Size::SplitK => [none().with_split_k(1), none().with_split_k(4)],
        Size::Unroll => [none().with_unroll(1), none().with_unroll(4)],
        other => panic!("no values for {other:?}"),
    }
}

#[test]
fn a_kernel_reads_the_sizes_that_it_declares_and_no_others() {
    let catalog = Catalog::builtin();
    let mut tried = 0;
    for (info, format) in [(cpu_info(), "native"), (npu_info(), "npu-program")] {
        for op in OPS {
            for variant in catalog.variants_of(op).filter(|variant| variant.format == format) {
                let (kernel_op, inputs, outputs) = sample(op);
                let launches = |parameters: &Parameters| {
                    let request = LowerRequest {
                        op: &kernel_op,
                        inputs: &inputs,
                        outputs: &outputs,
                        parameters,
                        local_staging: None,
                        device: &info,
                    };
                    (variant.lower)(&request).map(|lowered| fingerprint(&lowered))
                };
                if !variant.requires.iter().all(|feature| info.has_feature(feature)) {
                    println!("skipped: {variant:?} does not run on this machine");
                    continue;
                }
                let sizes =
                    variant.sizes.as_ref().expect("every kernel for CPUs and NPUs declares its sizes");
                for size in
                    [Size::Tile(3), Size::Threads(1), Size::Chunk, Size::Stages, Size::SplitK, Size::Unroll]
                {
                    let [one, other] = values(size).map(|parameters| launches(&parameters).unwrap());
                    assert_eq!(one != other, sizes.contains(&size), "{variant:?} {size:?}");
                }
                tried += 1;
            }
        }
    }
    assert!(tried >= 6 + 7, "{tried}");
}

/// Runs every op of a small network, forward and backward, with these sizes for all kernels that read them.
fn results(device: &str, tile: u32, chunk: u32) -> Vec<Vec<f64>> {
    let (device, fallback) = match device {
        "npu" => (common::npu().device().clone(), Some(common::cpu())),
        _ => (common::cpu_device(), None),
    };
    let base = common::profile_of(&device);
    let mut text = format!(
        "name: mine\nextends: {}\nmatch: {{ priority: 1, backend: {} }}\nkernels:\n",
        base.name(),
        device.id().backend
    );
    for (op, entries) in base.kernels() {
        let sizes = entries[0].parameters().sizes();
        let sizes = if sizes.contains(&Size::Tile(3)) {
            format!(", tile: [{tile}, {tile}, {tile}]")
        } else if op == "pad" && device.id().backend == "cpu" {
            String::new()
        } else {
            format!(", chunk: {chunk}")
        };
        text += &format!("  {op}: [{{ variant: {}{sizes} }}]\n", entries[0].variant());
    }
    let profile = base.extended_by(&text, "mine.yaml").unwrap();
    let catalog = Catalog::builtin();
    catalog.check(&profile, device.info()).unwrap();
    let engine = Engine::new(device, Arc::new(profile), catalog, fallback).unwrap();
    let numbers =
        |elements: usize| (0..elements).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect::<Vec<_>>();
    let tensor = |shape: &[usize]| engine.tensor(&numbers(shape.iter().product()), shape).unwrap();
    let (images, filter, dense) = (tensor(&[3, 2, 12, 12]), tensor(&[4, 2, 3, 3]), tensor(&[144, 7]));
    let features = images.conv2d(&filter, 1).unwrap().max_pool2d(2).unwrap().reshape(&[3, 144]).unwrap();
    let scores = features.matmul(&dense).unwrap().tanh().unwrap();
    let loss = scores.mul(&scores).unwrap().sum(&[1]).unwrap().sum_all().unwrap();
    let gradients = grad(&loss, &[&images, &filter, &dense]).unwrap();
    gradients.iter().chain([&loss]).map(|tensor| tensor.to_f64().unwrap()).collect()
}

#[test]
fn sizes_of_every_magnitude_compute_the_same() {
    for device in ["cpu", "npu"] {
        let expected = results(device, 64, 512);
        for size in [1, 7, 1000, u32::MAX] {
            for (got, expected) in results(device, size, size).iter().zip(&expected) {
                let scale = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
                for (got, expected) in got.iter().zip(expected) {
                    // Sums in another order; the longest has 432 terms.
                    assert!((got - expected).abs() <= 1e-5 * scale, "{device}, {size}: {got} {expected}");
                }
            }
        }
    }
}

/// An op of middling sizes in f32, with its operands.
fn sample(op: &str) -> (KernelOp, Vec<TensorType>, Vec<TensorType>) {
    let f32 = |shape: &[usize]| TensorType::new(DType::F32, shape);
    let program = |shape: &[usize]| Cluster {
        shape: shape.to_vec(),
        inputs: vec![View::contiguous(DType::F32, shape)],
        scalars: Vec::new(),
        // Two values live between the steps, which the result's memory cannot hold both.
        steps: [
            StepOp::Load(0),
            StepOp::Binary(BinaryOp::Add, 0, 0),
            StepOp::Binary(BinaryOp::Mul, 0, 0),
            StepOp::Binary(BinaryOp::Mul, 1, 2),
            StepOp::Binary(BinaryOp::Sub, 3, 1),
        ]
        .map(|op| Step { op, dtype: DType::F32 })
        .to_vec(),
        outputs: vec![4],
    };
    let matrix = |columns: i64| MatrixView {
        offset: 0,
        batch_strides: Vec::new(),
        row_stride: columns,
        col_stride: 1,
    };
    match op {
        "elementwise" => {
            (KernelOp::Elementwise(program(&[100_000])), vec![f32(&[100_000])], vec![f32(&[100_000])])
        }
        "reduce" => {
            let program = program(&[200, 5000]);
            let reduction = Reduction { kind: ReduceKind::Sum, program, kept_rank: 1, dtype: DType::F32 };
            (KernelOp::Reduce(reduction), vec![f32(&[200, 5000])], vec![f32(&[200])])
        }
        "dot_general" => {
            let dot = Dot {
                batch: Vec::new(),
                m: 300,
                n: 400,
                k: 500,
                lhs: matrix(500),
                rhs: matrix(400),
                dtype: DType::F32,
                out_dtype: DType::F32,
                epilogue: Epilogue::default(),
            };
            (KernelOp::Dot(dot), vec![f32(&[300, 500]), f32(&[500, 400])], vec![f32(&[300, 400])])
        }
        "conv_general" => {
            let geometry = ConvGeometry {
                batch: 4,
                in_channels: 16,
                out_channels: 32,
                groups: 1,
                input: vec![30, 30],
                kernel: vec![3, 3],
                output: vec![28, 28],
                stride: vec![1, 1],
                dilation: vec![1, 1],
                pad_low: vec![0, 0],
                pad_high: vec![0, 0],
            };
            let conv = Conv {
                operand: ConvOperand::Output,
                geometry,
                dtype: DType::F32,
                out_dtype: DType::F32,
                epilogue: Epilogue::default(),
            };
            let inputs = vec![f32(&[4, 16, 30, 30]), f32(&[32, 16, 3, 3])];
            (KernelOp::Conv(conv), inputs, vec![f32(&[4, 32, 28, 28])])
        }
        "window_reduce" => {
            let window = Window {
                kind: WindowKind::Max,
                outer: 256,
                input: vec![32, 32],
                output: vec![16, 16],
                window: vec![2, 2],
                stride: vec![2, 2],
                pad_low: vec![0, 0],
                pad_high: vec![0, 0],
                dtype: DType::F32,
            };
            (KernelOp::Window(window), vec![f32(&[256, 32, 32])], vec![f32(&[256, 16, 16])])
        }
        "pad" => {
            let value = Literal::new(DType::F32, 0.0);
            let pad = Pad {
                input: vec![300, 300],
                output: vec![302, 302],
                low: vec![1, 1],
                high: vec![1, 1],
                interior: vec![0, 0],
                value,
            };
            (KernelOp::Pad(pad), vec![f32(&[300, 300])], vec![f32(&[302, 302])])
        }
        other => panic!("no sample of {other}"),
    }
}
