//! The kernels that ship compiled: that their texts depend on nothing but their names, and that the PTX is theirs.
//!
//! With `HALITE_PTX_TEXTS=FOLDER` the texts are written, of which `tools/make_ptx.py` makes the PTX.

use super::super::precompiled::{kernels, variants_in};
use super::Language;
use crate::cluster::{BinaryOp, Cluster, Literal, Step, StepOp, View};
use crate::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, LowerRequest, MatrixView, Pad,
    ReduceKind, Reduction, TensorType, Window, WindowKind,
};
use halite_hal::{DType, DeviceId, DeviceInfo, KernelSource};
use halite_profiles::Parameters;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Names a folder for the texts.
const TEXTS: &str = "HALITE_PTX_TEXTS";

/// What the PTX may take of every program that is built with this crate.
const MOST_BYTES: usize = 4 << 20;

type Case = (KernelOp, Vec<TensorType>, Vec<TensorType>);

fn device() -> DeviceInfo {
    let mut device = DeviceInfo::new(DeviceId::new("cuda", 0), "a GPU");
    device.kernel_formats = vec!["ptx".to_owned()];
    device.limits.max_workgroup = [1024; 3];
    device.limits.max_workgroup_threads = 1024;
    device.limits.max_grid = [i32::MAX as u32, 65535, 65535];
    device.limits.max_args = 512;
    device
}

fn case(op: KernelOp, inputs: &[(DType, usize)], output: (DType, usize)) -> Case {
    let tensor = |&(dtype, elements): &(DType, usize)| TensorType::new(dtype, &[elements]);
    (op, inputs.iter().map(tensor).collect(), vec![tensor(&output)])
}

/// Each kernel that ships in two sizes at least.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let numbers = || DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool);
    for dtype in [DType::F32, DType::F64] {
        for shape in [&[5usize][..], &[3, 4, 1]] {
            let mut program = Cluster::copy(shape, View::contiguous(dtype, shape));
            program.steps.push(Step { op: StepOp::Binary(BinaryOp::Add, 0, 0), dtype });
            program.outputs = vec![1];
            let n = program.points();
            cases.push(case(KernelOp::Elementwise(program), &[(dtype, n)], (dtype, n)));
        }
    }
    for dtype in DType::ALL {
        for (kind, shape) in ReduceKind::ALL.into_iter().flat_map(|kind| [(kind, [1, 7]), (kind, [300, 2])]) {
            if dtype == DType::Bool && matches!(kind, ReduceKind::Sum | ReduceKind::Prod) {
                continue;
            }
            let program = Cluster::copy(&shape, View::contiguous(dtype, &shape));
            let out = if kind == ReduceKind::ArgMax { DType::I32 } else { dtype };
            let op = KernelOp::Reduce(Reduction { kind, program, kept_rank: 1, dtype: out });
            cases.push(case(op, &[(dtype, shape[0] * shape[1])], (out, shape[0])));
        }
    }
    let mixed = [(DType::F16, DType::F32), (DType::BF16, DType::F32)];
    for (dtype, out_dtype) in numbers().map(|dtype| (dtype, dtype)).chain(mixed) {
        for (batch, [m, k, n], epilogue) in [
            (vec![], [1, 1, 1], Epilogue::default()),
            (vec![2, 3], [70, 0, 5], Epilogue { bias: Some(BiasAxis::Row), relu: true }),
            (vec![4], [9, 130, 65], Epilogue { bias: Some(BiasAxis::Column), relu: false }),
        ] {
            let count: usize = batch.iter().product();
            let view = |rows: usize, columns: usize| MatrixView {
                offset: 0,
                batch_strides: vec![0; batch.len()],
                row_stride: columns as i64,
                col_stride: i64::from(rows > 0),
            };
            let (lhs, rhs) = (view(m, k), view(k, n));
            let dot = Dot { batch: batch.clone(), m, n, k, lhs, rhs, dtype, out_dtype, epilogue };
            let inputs = [(dtype, m * k), (dtype, k * n), (dtype, m.max(n))];
            cases.push(case(KernelOp::Dot(dot), &inputs, (out_dtype, count * m * n)));
        }
    }
    let geometries = [
        ([1, 1, 1, 1], vec![4], vec![2], vec![3], vec![1], vec![1], vec![0]),
        ([2, 4, 6, 2], vec![5, 6], vec![3, 2], vec![2, 3], vec![2, 2], vec![1, 1], vec![0, 0]),
    ];
    for ([batch, in_channels, out_channels, groups], input, kernel, output, stride, dilation, pad) in
        geometries
    {
        let g = ConvGeometry {
            batch,
            in_channels,
            out_channels,
            groups,
            input,
            kernel,
            output,
            stride,
            dilation,
            pad_low: pad.clone(),
            pad_high: pad,
        };
        let product = |extents: &[usize]| extents.iter().product::<usize>();
        let x = g.batch * g.in_channels * product(&g.input);
        let w = g.out_channels * (g.in_channels / g.groups) * product(&g.kernel);
        let y = g.batch * g.out_channels * product(&g.output);
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32] {
            for (operand, lens, result) in [
                (ConvOperand::Output, vec![x, w, g.out_channels], y),
                (ConvOperand::Input, vec![y, w], x),
                (ConvOperand::Filter, vec![y, x], w),
            ] {
                let bias = (operand == ConvOperand::Output && groups > 1).then_some(BiasAxis::Channel);
                let epilogue = Epilogue { bias, relu: groups > 1 };
                let op = Conv { operand, geometry: g.clone(), dtype, out_dtype: dtype, epilogue };
                let inputs: Vec<_> = lens.into_iter().map(|len| (dtype, len)).collect();
                cases.push(case(KernelOp::Conv(op), &inputs, (dtype, result)));
            }
        }
    }
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32] {
        for kind in WindowKind::ALL {
            for (outer, input, output, window) in
                [(1, vec![4], vec![3], vec![2]), (6, vec![5, 4], vec![4, 2], vec![2, 3])]
            {
                let (x, y) =
                    (outer * input.iter().product::<usize>(), outer * output.iter().product::<usize>());
                let axes = input.len();
                let ones = |value: usize| vec![value; axes];
                let op = Window {
                    kind,
                    outer,
                    input,
                    output,
                    window,
                    stride: ones(1),
                    pad_low: ones(0),
                    pad_high: ones(0),
                    dtype,
                };
                let (inputs, result) = match kind {
                    WindowKind::Max | WindowKind::Sum => (vec![x], y),
                    WindowKind::ScatterToMax => (vec![x, y], x),
                    WindowKind::GatherAtMax => (vec![x, x], y),
                    WindowKind::Spread => (vec![y], x),
                };
                let inputs: Vec<_> = inputs.into_iter().map(|len| (dtype, len)).collect();
                cases.push(case(KernelOp::Window(op), &inputs, (dtype, result)));
            }
        }
    }
    for dtype in [DType::U8, DType::F16, DType::F32, DType::F64] {
        for (input, output) in [(vec![2, 3], vec![4, 4]), (vec![5], vec![9])] {
            let (x, y) = (input.iter().product(), output.iter().product());
            let (axes, value) = (input.len(), Literal::new(dtype, 2.0));
            let (low, high, interior) = (vec![1; axes], vec![0; axes], vec![0; axes]);
            let pad = Pad { input, output, low, high, interior, value };
            cases.push(case(KernelOp::Pad(pad), &[(dtype, x)], (dtype, y)));
        }
    }
    cases
}

/// What variants answer for every case.
fn lowered(language: Language) -> impl Iterator<Item = KernelSource> {
    let (device, parameters) = (device(), Parameters::default());
    let variants = variants_in(language);
    let sources = cases().into_iter().flat_map(move |(op, inputs, outputs)| {
        let request = LowerRequest {
            op: &op,
            inputs: &inputs,
            outputs: &outputs,
            parameters: &parameters,
            local_staging: None,
            device: &device,
        };
        let variant =
            variants.iter().find(|variant| variant.op == op.name()).expect("every operation has one");
        let lowered = (variant.lower)(&request).unwrap_or_else(|reason| panic!("{reason} for {op:?}"));
        lowered.launches.into_iter().map(|launch| launch.source).collect::<Vec<_>>()
    });
    sources.collect::<Vec<_>>().into_iter()
}

/// FNV-1a of 64 bits: enough to notice a change.
fn hash(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The text of each kernel, by name.
fn texts() -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for source in lowered(Language::GeneralCudaC) {
        let KernelSource::Text { source, entry, options, .. } = source else {
            panic!("{source:?} is no text")
        };
        let text = format!("// {options}\n{source}").replace("\r\n", "\n");
        let first = texts.entry(entry.clone()).or_insert_with(|| text.clone());
        assert_eq!(*first, text, "the text of {entry} depends on sizes");
    }
    texts
}

#[test]
fn the_ptx_that_ships_is_made_of_texts_that_serve_all_sizes() {
    let texts = texts();
    if let Some(folder) = std::env::var_os(TEXTS) {
        let folder = Path::new(&folder);
        std::fs::create_dir_all(folder).expect("the folder can be made");
        for (name, text) in &texts {
            let file = folder.join(format!("{name}.{}.cu", hash(text)));
            std::fs::write(file, text).expect("the text can be written");
        }
        println!("{} texts written; tools/make_ptx.py makes the PTX of them", texts.len());
        return;
    }
    let expected: BTreeMap<&str, String> =
        texts.iter().map(|(name, text)| (name.as_str(), hash(text))).collect();
    let shipped: BTreeMap<&str, String> = kernels().map(|(name, hash, _)| (name, hash.to_owned())).collect();
    assert_eq!(shipped, expected, "the PTX is of other texts; see tools/make_ptx.py");
    let bytes: usize = kernels().map(|(.., ptx)| ptx.len()).sum();
    println!("{} kernels in {bytes} bytes", shipped.len());
    assert!(bytes < MOST_BYTES, "{bytes} bytes ship");
}

#[test]
fn without_a_compiler_every_operation_is_served_by_what_ships() {
    let mut entries = BTreeSet::new();
    for source in lowered(Language::Ptx) {
        let KernelSource::Binary { format: "ptx", bytes, entry, requires, .. } = source else {
            panic!("{source:?} is no PTX")
        };
        let ptx = std::str::from_utf8(&bytes).expect("PTX is text");
        assert!(ptx.contains(&format!(".visible .entry {entry}(")), "{entry} is not in its PTX");
        assert!(ptx.starts_with(".version 6.0\n.target sm_50\n") && requires.is_empty(), "{entry}");
        entries.insert(entry);
    }
    assert_eq!(entries.len(), kernels().count(), "what ships is used");
}

#[test]
fn what_does_not_ship_is_refused_by_name_with_what_to_install() {
    let reason = super::super::precompiled::ptx("dot_general_f32_f64_general").expect_err("it does not ship");
    let reason = reason.to_string();
    assert!(reason.contains("'dot_general_f32_f64_general'") && reason.contains("NVRTC"), "{reason}");
    assert!(reason.contains("HALITE_NVRTC_LIBRARY"), "{reason}");
}
