//! Products on tensor cores, simulated, against plain loops in f64.

use super::contraction::{Sum, assert_close, elements};
use super::simulator::Simulator;
use crate::kernels::cpu::elementwise::reference::{float, read, rounded};
use crate::kernels::cpu::harness::{Memory, Random};
use crate::kernels::gpu::{Language, variants};
use crate::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, LowerRequest, Lowered, MatrixView,
    TensorType, Unservable,
};
use halite_hal::{DType, DeviceId, DeviceInfo};
use halite_profiles::Parameters;

/// Of an architecture with what it has of the tensor cores.
fn device(features: &[&str]) -> DeviceInfo {
    let mut info = DeviceInfo::new(DeviceId::new("cuda", 0), "simulated");
    info.kernel_formats = vec!["cuda-c".to_owned()];
    info.features = features.iter().map(|&feature| feature.to_owned()).collect();
    info.compute_units = 8;
    info.limits.max_workgroup = [1024; 3];
    info.limits.max_workgroup_threads = 1024;
    info.limits.local_memory_bytes = 227 << 10;
    info
}

const AMPERE: [&str; 4] = ["tensor-cores", "sm_75", "sm_80", "bf16"];
const HOPPER: [&str; 5] = ["tensor-cores", "sm_75", "sm_80", "bf16", "sm_90a"];

fn sizes(tile: [u32; 3], warps: [u32; 2], stages: u32) -> Parameters {
    let [along_n, along_m] = warps;
    Parameters::default().with_tile(tile).with_threads([32 * along_n, along_m]).with_stages(stages)
}

fn lower(
    features: &[&str],
    parameters: &Parameters,
    op: &KernelOp,
    inputs: &[TensorType],
    outputs: &[TensorType],
) -> Result<Lowered, Unservable> {
    lower_with("tensor_cores", features, parameters, op, inputs, outputs)
}

fn lower_with(
    name: &str,
    features: &[&str],
    parameters: &Parameters,
    op: &KernelOp,
    inputs: &[TensorType],
    outputs: &[TensorType],
) -> Result<Lowered, Unservable> {
    let is_wanted = |v: &&crate::lower::KernelVariant| {
        v.op == op.name() && v.name == name && v.format == Language::CudaC.format()
    };
    let all = variants();
    let variant = all.iter().find(is_wanted).expect("it is registered");
    let device = device(features);
    (variant.lower)(&LowerRequest { op, inputs, outputs, parameters, local_staging: None, device: &device })
}

/// How an operand lies in memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Whether columns, and not rows, are runs of neighbours.
    is_transposed: bool,
    /// Elements that everything is a multiple of.
    alignment: usize,
    /// Whether neighbours lie two elements apart, and lines backwards.
    has_gaps: bool,
}

const fn rows(alignment: usize) -> Layout {
    Layout { is_transposed: false, alignment, has_gaps: false }
}

const fn columns(alignment: usize) -> Layout {
    Layout { is_transposed: true, alignment, has_gaps: false }
}

const GAPS: Layout = Layout { is_transposed: false, alignment: 1, has_gaps: true };

impl Layout {
    /// The view, and the elements of its buffer.
    fn view(self, batch: usize, rows: usize, columns: usize) -> (MatrixView, usize) {
        let (lines, line) = if self.is_transposed { (columns, rows) } else { (rows, columns) };
        let step = if self.has_gaps { 2 } else { 1 };
        // An odd number of the alignment's multiples, so that nothing is aligned to more.
        let odd = |elements: usize| {
            let multiples = elements.div_ceil(self.alignment);
            (multiples + 1 - multiples % 2) * self.alignment
        };
        let pitch = odd(line * step);
        let matrix = odd(pitch * lines);
        let backwards = if self.has_gaps { pitch * (lines - 1) } else { 0 };
        let offset = (self.alignment + backwards) as i64;
        let stride = if self.has_gaps { -(pitch as i64) } else { pitch as i64 };
        let (row_stride, col_stride) =
            if self.is_transposed { (step as i64, stride) } else { (stride, step as i64) };
        let batch_strides = if batch > 1 { vec![matrix as i64] } else { Vec::new() };
        // The last line ends with the buffer.
        let len = self.alignment + (batch - 1) * matrix + (lines - 1) * pitch + (line - 1) * step + 1;
        (MatrixView { offset, batch_strides, row_stride, col_stride }, len)
    }
}

struct Case {
    batch: usize,
    size: [usize; 3],
    layouts: [Layout; 2],
    dtypes: (DType, DType),
    epilogue: Epilogue,
}

/// A case with the elements of its operands and the sums.
struct Problem {
    dot: Dot,
    inputs: Vec<(TensorType, Memory)>,
    output: TensorType,
    expected: Vec<Sum>,
}

/// `unusual` elements of each operand are infinite or NaN.
fn problem(random: &mut Random, case: &Case, unusual: usize) -> Problem {
    let (&Case { batch, size: [m, k, n], dtypes: (dtype, out_dtype), epilogue, .. }, layouts) =
        (case, case.layouts);
    let views = [layouts[0].view(batch, m, k), layouts[1].view(batch, k, n)];
    let mut inputs: Vec<(TensorType, Memory)> = Vec::new();
    for &(_, len) in &views {
        let mut memory = elements(random, dtype, len);
        for _ in 0..unusual {
            let value = random.pick(&[f64::INFINITY, f64::NEG_INFINITY, f64::NAN]);
            let bits = rounded(dtype, value).to_le_bytes();
            let at = random.below(len) * 2;
            memory.bytes_mut()[at..at + 2].copy_from_slice(&bits[..2]);
        }
        inputs.push((TensorType::new(dtype, &[len]), memory));
    }
    if let Some(axis) = epilogue.bias {
        let len = if axis == BiasAxis::Row { m } else { n };
        inputs.push((TensorType::new(dtype, &[len]), elements(random, dtype, len)));
    }
    let [lhs, rhs] = views.map(|(view, _)| view);
    let at = |view: &MatrixView, b: usize, row: usize, column: usize| {
        let batch_stride = view.batch_strides.first().copied().unwrap_or(0);
        let place = view.offset + b as i64 * batch_stride;
        (place + row as i64 * view.row_stride + column as i64 * view.col_stride) as usize
    };
    let mut expected = Vec::new();
    for b in 0..batch {
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let mut sum = Sum::zero(dtype);
            for step in 0..k {
                let left = Sum::element(dtype, &inputs[0].1, at(&lhs, b, row, step));
                let right = Sum::element(dtype, &inputs[1].1, at(&rhs, b, step, column));
                sum = sum.plus(left.times(right));
            }
            if let Some(axis) = epilogue.bias {
                let place = if axis == BiasAxis::Row { row } else { column };
                sum = sum.plus(Sum::element(dtype, &inputs[2].1, place));
            }
            let is_negative = matches!(sum, Sum::Float(sum) if sum < 0.0);
            expected.push(if epilogue.relu && is_negative { Sum::zero(dtype) } else { sum });
        }
    }
    let batch = if batch > 1 { vec![batch] } else { Vec::new() };
    let output = TensorType::new(out_dtype, &[batch.as_slice(), &[m, n]].concat());
    Problem { dot: Dot { batch, m, n, k, lhs, rhs, dtype, out_dtype, epilogue }, inputs, output, expected }
}

fn solve(simulator: &mut Simulator, parameters: &Parameters, problem: &Problem) -> Memory {
    let types: Vec<TensorType> = problem.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
    let op = KernelOp::Dot(problem.dot.clone());
    let outputs = [problem.output.clone()];
    let lowered = lower(&AMPERE, parameters, &op, &types, &outputs)
        .unwrap_or_else(|reason| panic!("{parameters} {:?}: {reason}", problem.dot));
    simulator.run(&lowered, &problem.inputs, &outputs).swap_remove(0)
}

fn check(simulator: &mut Simulator, random: &mut Random, parameters: &Parameters, case: &Case) {
    let problem = problem(random, case, 0);
    let got = solve(simulator, parameters, &problem);
    let (dtype, out) = case.dtypes;
    assert_close(
        &got,
        out,
        dtype,
        &problem.expected,
        case.size[1],
        &format!("{parameters} {:?}", problem.dot),
    );
}

const HALF: (DType, DType) = (DType::F16, DType::F16);
const BRAIN: (DType, DType) = (DType::BF16, DType::F32);

fn plain(batch: usize, size: [usize; 3], layouts: [Layout; 2], dtypes: (DType, DType)) -> Case {
    Case { batch, size, layouts, dtypes, epilogue: Epilogue::default() }
}

#[test]
fn operands_in_any_layout_and_of_any_size_agree_with_f64() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(21);
    let small = sizes([32, 64, 32], [2, 1], 2);
    // Sizes about the tile's, primes, and less than an instruction takes.
    let extents = [[32, 32, 64], [37, 67, 53], [70, 9, 5], [3, 100, 129]];
    for (layouts, dtypes) in [
        ([rows(8), rows(8)], HALF),
        ([columns(8), columns(8)], BRAIN),
        ([rows(4), columns(2)], HALF),
        ([columns(4), rows(2)], BRAIN),
        ([rows(1), columns(1)], BRAIN),
        ([GAPS, GAPS], HALF),
    ] {
        for (n, size) in extents.into_iter().enumerate() {
            check(&mut simulator, &mut random, &small, &plain([2, 3][n % 2], size, layouts, dtypes));
        }
    }
    // What has one element is known to the compiler.
    check(&mut simulator, &mut random, &small, &plain(1, [1, 40, 1], [rows(8), rows(8)], HALF));
}

#[test]
fn every_shape_of_tile_and_number_of_stages_agrees_with_f64() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(22);
    for (n, parameters) in [
        sizes([16, 16, 16], [1, 1], 2),
        sizes([64, 32, 64], [1, 4], 3),
        sizes([64, 64, 16], [2, 2], 5),
        sizes([128, 128, 32], [2, 2], 3),
        sizes([128, 256, 64], [4, 2], 4),
    ]
    .into_iter()
    .enumerate()
    {
        let layouts = [[rows(8), columns(8)], [columns(8), rows(8)]][n % 2];
        check(&mut simulator, &mut random, &parameters, &plain(1, [150, 200, 272], layouts, HALF));
    }
}

#[test]
fn epilogues_and_cut_sums_agree_with_f64() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(23);
    let small = sizes([32, 32, 32], [1, 1], 3);
    for (n, (axis, relu)) in
        [(Some(BiasAxis::Row), true), (Some(BiasAxis::Column), false), (None, true)].into_iter().enumerate()
    {
        let epilogue = Epilogue { bias: axis, relu };
        let dtypes = [(DType::BF16, DType::BF16), HALF, BRAIN][n];
        let case = Case { epilogue, ..plain(1, [33, 40, 24 + n], [rows(8), rows(8)], dtypes) };
        check(&mut simulator, &mut random, &small, &case);
    }
    let cut = small.with_split_k(3);
    let epilogue = Epilogue { bias: Some(BiasAxis::Column), relu: true };
    let case = Case { epilogue, ..plain(1, [20, 1100, 19], [rows(8), columns(8)], HALF) };
    check(&mut simulator, &mut random, &cut, &case);
}

#[test]
fn infinity_and_nan_spread_to_their_rows_and_columns_alone() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(24);
    let epilogue = Epilogue { bias: None, relu: true };
    let case = Case { epilogue, ..plain(1, [70, 45, 83], [rows(8), rows(8)], BRAIN) };
    let problem = problem(&mut random, &case, 9);
    let got = solve(&mut simulator, &sizes([32, 64, 32], [2, 1], 2), &problem);
    let mut unusual = 0;
    for (place, expected) in problem.expected.iter().enumerate() {
        let Sum::Float(expected) = *expected else { panic!("sums are floats") };
        let got = float(DType::F32, read(got.bytes(), DType::F32, place));
        if expected.is_finite() {
            assert!((got - expected).abs() < 1e-4, "{place}: {got}, not {expected}");
        } else {
            unusual += 1;
            assert!(got == expected || got.is_nan() && expected.is_nan(), "{place}: {got}, not {expected}");
        }
    }
    assert!(unusual > 100 && unusual < problem.expected.len() - 100, "{unusual}");
}

#[test]
fn convolutions_are_products_on_tensor_cores_too() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(25);
    let geometry = ConvGeometry {
        batch: 2,
        in_channels: 6,
        out_channels: 10,
        groups: 2,
        input: vec![7, 6],
        kernel: vec![3, 2],
        output: vec![4, 6],
        stride: vec![2, 1],
        dilation: vec![1, 1],
        pad_low: vec![1, 0],
        pad_high: vec![1, 1],
    };
    let (x, w) =
        (elements(&mut random, DType::F16, 2 * 6 * 42), elements(&mut random, DType::F16, 10 * 3 * 6));
    let mut expected = vec![Sum::zero(DType::F16); 2 * 10 * 24];
    for (place, sum) in expected.iter_mut().enumerate() {
        let (image, o, row, column) = (place / 240, place / 24 % 10, place / 6 % 4, place % 6);
        for (channel, i, j) in (0..3).flat_map(|c| (0..3).flat_map(move |i| (0..2).map(move |j| (c, i, j)))) {
            let (y, z) = (row * 2 + i, column + j);
            if (1..8).contains(&y) && z < 6 {
                let at = ((image * 6 + o / 5 * 3 + channel) * 7 + y - 1) * 6 + z;
                let tap = (o * 3 + channel) * 6 + i * 2 + j;
                let left = Sum::element(DType::F16, &x, at);
                *sum = sum.plus(left.times(Sum::element(DType::F16, &w, tap)));
            }
        }
    }
    let (dtype, epilogue) = (DType::F16, Epilogue::default());
    let op =
        KernelOp::Conv(Conv { operand: ConvOperand::Output, geometry, dtype, out_dtype: dtype, epilogue });
    let inputs = [x, w].map(|memory| (TensorType::new(dtype, &[memory.bytes().len() / 2]), memory));
    let types = inputs.clone().map(|(tensor, _)| tensor);
    let output = [TensorType::new(dtype, &[expected.len()])];
    let lowered =
        lower(&AMPERE, &sizes([16, 32, 32], [1, 1], 3), &op, &types, &output).expect("f16 is served");
    let got = simulator.run(&lowered, &inputs, &output);
    assert_close(&got[0], dtype, dtype, &expected, 18, "convolution");
}

/// Sizes for groups of four warps.
fn groups(tile: [u32; 3], groups: [u32; 2], stages: u32) -> Parameters {
    let [along_n, along_m] = groups;
    Parameters::default().with_tile(tile).with_threads([128 * along_n, along_m]).with_stages(stages)
}

fn lower_groups(parameters: &Parameters, problem: &Problem) -> Lowered {
    let types: Vec<TensorType> = problem.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
    let op = KernelOp::Dot(problem.dot.clone());
    lower_with("warpgroups", &HOPPER, parameters, &op, &types, std::slice::from_ref(&problem.output))
        .unwrap_or_else(|reason| panic!("{parameters} {:?}: {reason}", problem.dot))
}

#[test]
fn groups_of_warps_agree_with_f64_in_every_layout() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(29);
    let epilogue = Epilogue { bias: Some(BiasAxis::Column), relu: true };
    for (parameters, case) in [
        (groups([64, 128, 64], [1, 1], 3), plain(2, [70, 210, 150], [rows(8), rows(8)], BRAIN)),
        (groups([64, 128, 64], [1, 1], 4), plain(1, [50, 333, 128], [columns(8), columns(4)], HALF)),
        (groups([128, 128, 128], [1, 1], 3), plain(1, [131, 67, 53], [rows(1), GAPS], HALF)),
        (
            groups([128, 256, 64], [1, 2], 4),
            Case { epilogue, ..plain(1, [130, 330, 264], [columns(8), rows(8)], BRAIN) },
        ),
    ] {
        let problem = problem(&mut random, &case, 0);
        let lowered = lower_groups(&parameters, &problem);
        let halite_hal::KernelSource::Text { requires, .. } = &lowered.launches[0].source else {
            panic!("the kernel is a text")
        };
        assert_eq!(requires, &["sm_90a"]);
        let got = simulator.run(&lowered, &problem.inputs, std::slice::from_ref(&problem.output));
        let (dtype, out) = case.dtypes;
        assert_close(&got[0], out, dtype, &problem.expected, case.size[1], &format!("{parameters}"));
    }
}

/// The product itself is the library's.
#[test]
fn what_follows_a_product_of_the_vendors_library_keeps_nan() {
    let Some(mut simulator) = Simulator::new() else { return };
    let epilogue = Epilogue { bias: None, relu: true };
    let case = Case { epilogue, ..plain(1, [2, 3, 4], [rows(1), rows(1)], HALF) };
    let mut problem = problem(&mut Random::new(28), &case, 0);
    (problem.dot.lhs.offset, problem.dot.rhs.offset) = (0, 0);
    let types: Vec<TensorType> = problem.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
    let (op, outputs) = (KernelOp::Dot(problem.dot), [problem.output]);
    let all = variants();
    let variant = all.iter().find(|variant| variant.name == "builtin").expect("it is registered");
    let (device, parameters) = (device(&["builtin:fused_matmul"]), Parameters::default());
    let request = LowerRequest {
        op: &op,
        inputs: &types,
        outputs: &outputs,
        parameters: &parameters,
        local_staging: None,
        device: &device,
    };
    let lowered = (variant.lower)(&request).expect("the library is asked");
    let [product, relu] = lowered.launches.as_slice() else { panic!("two launches") };
    assert!(matches!(product.source, halite_hal::KernelSource::Builtin(_)));
    let values = [-1.0, f64::NAN, 2.0, f64::INFINITY, f64::NEG_INFINITY, -0.5, 0.0, 3.0];
    let bytes: Vec<u8> =
        values.iter().flat_map(|&x| rounded(DType::F16, x).to_le_bytes()[..2].to_vec()).collect();
    let mut buffers: Vec<Memory> = problem.inputs.into_iter().map(|(_, memory)| memory).collect();
    buffers.extend([Memory::new(&bytes), Memory::new(&[])]);
    simulator.launch(relu, &mut buffers, 2);
    for (place, x) in values.into_iter().enumerate() {
        let got = float(DType::F16, read(buffers[2].bytes(), DType::F16, place));
        assert!(got == if x < 0.0 { 0.0 } else { x } || got.is_nan() && x.is_nan(), "{place}: {got} of {x}");
    }
}

/// A stage too few, or a barrier too few, is what the simulator is for.
#[test]
fn the_simulator_finds_races_and_copies_that_nobody_waits_for() {
    let Some(mut simulator) = Simulator::new() else { return };
    let mut random = Random::new(26);
    let problem = problem(&mut random, &plain(1, [31, 200, 32], [rows(8), rows(8)], HALF), 0);
    let types: Vec<TensorType> = problem.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
    let (op, outputs) = (KernelOp::Dot(problem.dot.clone()), [problem.output.clone()]);
    let lowered = lower(&AMPERE, &sizes([32, 32, 32], [1, 2], 3), &op, &types, &outputs).expect("it fits");
    let of_groups = lower_groups(&groups([64, 128, 64], [1, 1], 3), &problem);
    for (lowered, right, wrong, message) in [
        (&lowered, "await_copies<AHEAD - 1>();", "await_copies<AHEAD>();", "a copy to it is under way"),
        (&lowered, "BARRIER();\n        if (next", "if (next", "shared memory at"),
        (&lowered, "free_stage = AHEAD", "free_stage = 0", "shared memory at"),
        (&lowered, "M - first_row, k_end - k", "M - first_row + 1, k_end - k", "outside of all buffers"),
        (&of_groups, "show_copies();\n", "\n", "was not shown"),
        (&of_groups, "await_products<1>();", "await_products<2>();", "while it is multiplied"),
        (&of_groups, "#define AHEAD (STAGES - 2)", "#define AHEAD (STAGES - 1)", "while it is multiplied"),
    ] {
        let mut broken = lowered.clone();
        let halite_hal::KernelSource::Text { source, .. } = &mut broken.launches[0].source else {
            panic!("the kernel is a text")
        };
        let text = source.replace(right, wrong);
        assert_ne!(text, source.to_string(), "{right}");
        *source = text.into();
        let run = std::panic::AssertUnwindSafe(|| simulator.run(&broken, &problem.inputs, &outputs));
        let failure = std::panic::catch_unwind(run).expect_err(wrong);
        let failure = failure.downcast_ref::<String>().expect("the simulator says what it found");
        assert!(failure.contains(message), "{wrong}: {failure}");
    }
}

#[test]
fn what_tensor_cores_do_not_serve_is_refused_with_a_reason() {
    let fit = sizes([32, 32, 32], [1, 1], 2);
    let refused = |features: &[&str], parameters: &Parameters, dtypes: (DType, DType)| {
        let mut random = Random::new(27);
        let case = plain(1, [8, 8, 8], [rows(8), rows(8)], HALF);
        let mut problem = problem(&mut random, &case, 0);
        (problem.dot.dtype, problem.dot.out_dtype) = dtypes;
        let types: Vec<TensorType> = problem.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
        let op = KernelOp::Dot(problem.dot);
        lower(features, parameters, &op, &types, &[problem.output]).map(|_| ()).map_err(|reason| reason.0)
    };
    assert_eq!(refused(&AMPERE, &fit, HALF), Ok(()));
    assert_eq!(refused(&AMPERE, &Parameters::default(), HALF), Ok(()));
    for (features, parameters, dtypes, part) in [
        (&AMPERE[..], fit.clone(), (DType::F32, DType::F32), "f32 is no type of the tensor cores"),
        (&AMPERE[..2], fit.clone(), BRAIN, "bf16 needs the feature bf16"),
        (&AMPERE, sizes([24, 32, 32], [1, 1], 2), HALF, "does not divide"),
        (&AMPERE, sizes([32, 32, 32], [1, 3], 2), HALF, "does not divide"),
        (&AMPERE, fit.clone().with_threads([16, 2]), HALF, "does not divide"),
        (&AMPERE, sizes([128, 128, 32], [1, 1], 2), HALF, "at most 128"),
        (&AMPERE, sizes([48, 32, 32], [1, 1], 2), HALF, "lines of 48"),
        (&AMPERE, sizes([32, 32, 32], [1, 1], 1), HALF, "at least 2"),
        (&AMPERE, sizes([256, 256, 64], [4, 4], 4), HALF, "bytes of shared memory"),
    ] {
        let reason = refused(features, &parameters, dtypes).expect_err(part);
        assert!(reason.contains(part), "{reason}");
    }
}
