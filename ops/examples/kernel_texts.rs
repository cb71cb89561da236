//! Writes the text of every GPU kernel, so that compilers can be tried without a device.
//!
//! ```sh
//! cargo run -p halite-ops --example kernel_texts -- FOLDER
//! ```
//!
//! A set of operations that reaches every line of the kernels is lowered with each variant and with the sizes of each
//! built-in profile that may choose it. Equal texts are written once. `FOLDER/index.tsv` lists file, function, options,
//! the profiles that lead to it, and the features that it needs.

use halite_hal::{DType, DeviceId, DeviceInfo, KernelSource};
use halite_ops::Catalog;
use halite_ops::cluster::{BinaryOp, Cluster, CompareOp, Literal, Step, StepOp, UnaryOp, View};
use halite_ops::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, LowerRequest, MatrixView, Pad,
    ReduceKind, Reduction, TensorType, Window, WindowKind,
};
use halite_profiles::{Parameters, Profile, ProfileSet};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

/// An operation with the types of its buffers.
struct Case {
    op: KernelOp,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
}

/// A text with its function, options and the features that it needs, and who asked for it.
type Texts = BTreeMap<(String, String, String, String), BTreeSet<String>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("name a folder")?;
    let families = [elementwise(), reductions(), products(), convolutions(), windows(), paddings()];
    let cases: Vec<Case> = families.into_iter().flatten().collect();
    for (family, format, extension) in [("opencl", "opencl-c", "cl"), ("cuda", "cuda-c", "cu")] {
        let mut texts = Texts::new();
        for profile in ProfileSet::builtin().iter().filter(|profile| is_of(profile, family)) {
            for case in &cases {
                collect(&mut texts, profile, family, format, case)?;
            }
        }
        write(Path::new(&folder), extension, &texts)?;
        println!("{}: {} texts in {folder}", format, texts.len());
    }
    Ok(())
}

fn is_of(profile: &Arc<Profile>, family: &str) -> bool {
    profile.name() == family || profile.ancestors().iter().any(|ancestor| ancestor == family)
}

/// A device that takes whatever a profile asks for.
fn device(family: &str, format: &str) -> DeviceInfo {
    let mut device = DeviceInfo::new(DeviceId::new(family, 0), family);
    device.kernel_formats = vec![format.to_owned()];
    device.features = ["fp64", "tensor-cores", "sm_75", "bf16", "sm_90a"].map(str::to_owned).into();
    device.compute_units = 128;
    device.limits.offset_alignment_bytes = 256;
    device.limits.max_workgroup = [1024; 3];
    device.limits.max_workgroup_threads = 1024;
    // As much as any profile asks for; compilers are not told how much a launch takes beside what the text declares.
    device.limits.local_memory_bytes = 227 << 10;
    device
}

/// Lowers `case` with every entry of the profile, and with every variant without one.
fn collect(
    texts: &mut Texts,
    profile: &Profile,
    family: &str,
    format: &str,
    case: &Case,
) -> Result<(), Box<dyn std::error::Error>> {
    let device = device(family, format);
    let catalog = Catalog::builtin();
    for variant in catalog.variants_of(case.op.name()).filter(|variant| variant.format == format) {
        let entries = profile.kernel_entries(case.op.name()).iter();
        let mut sizes: Vec<Parameters> = entries
            .filter(|entry| entry.variant() == variant.name)
            .map(|entry| entry.parameters().clone())
            .collect();
        if sizes.is_empty() {
            sizes.push(Parameters::default());
        }
        for parameters in &sizes {
            let request = LowerRequest {
                op: &case.op,
                inputs: &case.inputs,
                outputs: &case.outputs,
                parameters,
                local_staging: profile.memory().local_staging,
                device: &device,
            };
            let lowered = match (variant.lower)(&request) {
                Ok(lowered) => lowered,
                // What has a requirement serves some types alone, and others serve the rest.
                Err(_) if !variant.requires.is_empty() => continue,
                Err(reason) => {
                    let name = profile.name();
                    return Err(format!("{name}: {variant:?} of {:?}: {reason}", case.op).into());
                }
            };
            for launch in lowered.launches {
                if let KernelSource::Text { source, entry, options, requires, .. } = launch.source {
                    let key = (entry, options, requires.join(","), source.to_string());
                    texts.entry(key).or_default().insert(profile.name().to_owned());
                }
            }
        }
    }
    Ok(())
}

fn write(folder: &Path, extension: &str, texts: &Texts) -> std::io::Result<()> {
    let folder = folder.join(extension);
    std::fs::create_dir_all(&folder)?;
    let mut index = String::new();
    for (number, ((entry, options, requires, source), profiles)) in texts.iter().enumerate() {
        let file = format!("{number:04}_{entry}.{extension}");
        std::fs::write(folder.join(&file), source)?;
        let profiles = profiles.iter().cloned().collect::<Vec<_>>().join(",");
        let _ = writeln!(index, "{file}\t{entry}\t{options}\t{profiles}\t{requires}");
    }
    std::fs::write(folder.join("index.tsv"), index)
}

fn case(op: KernelOp, inputs: &[(DType, usize)], output: (DType, usize)) -> Case {
    let tensor = |&(dtype, elements): &(DType, usize)| TensorType::new(dtype, &[elements]);
    Case { op, inputs: inputs.iter().map(tensor).collect(), outputs: vec![tensor(&output)] }
}

/// Every function of every dtype, over dense rows and over strided ones.
fn elementwise() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DType::ALL {
        for shape in [vec![4096], vec![3, 5, 40], vec![3, 5, 7]] {
            let dense = View::contiguous(dtype, &shape);
            let mut turned = dense.clone();
            turned.strides.iter_mut().for_each(|stride| *stride = -*stride);
            let points: usize = shape.iter().product();
            turned.offset = points as i64 - 1;
            let mut cluster = Cluster::copy(&shape, dense);
            cluster.inputs.push(turned);
            cluster.scalars = vec![DType::F32];
            let mut push = |op: StepOp, dtype: DType| cluster.steps.push(Step { op, dtype });
            push(StepOp::Load(1), dtype);
            push(StepOp::Scalar(0), DType::F32);
            push(
                StepOp::Index(shape.len() as u32 - 1),
                if dtype == DType::Bool { DType::I32 } else { dtype },
            );
            push(StepOp::Constant(Literal::new(dtype, 3.0)), dtype);
            UnaryOp::ALL
                .into_iter()
                .filter(|op| op.accepts(dtype))
                .for_each(|op| push(StepOp::Unary(op, 0), dtype));
            let binary = BinaryOp::ALL.into_iter().filter(|op| op.accepts(dtype));
            binary.for_each(|op| push(StepOp::Binary(op, 0, 1), dtype));
            CompareOp::ALL.into_iter().for_each(|op| push(StepOp::Compare(op, 0, 1), DType::Bool));
            DType::ALL.into_iter().for_each(|to| push(StepOp::Cast(0), to));
            DType::ALL
                .into_iter()
                .filter(|to| to.size() == dtype.size())
                .for_each(|to| push(StepOp::Bitcast(0), to));
            cluster.outputs = (0..cluster.steps.len() as u32).collect();
            let inputs = [TensorType::new(dtype, &shape), TensorType::new(dtype, &shape)];
            let outputs = (0..cluster.outputs.len())
                .map(|n| TensorType::new(cluster.output_dtype(n), &shape))
                .collect();
            // All outputs of one kernel would be more arguments than a device takes.
            for part in split(cluster, outputs) {
                let (cluster, outputs) = part;
                cases.push(Case { op: KernelOp::Elementwise(cluster), inputs: inputs.to_vec(), outputs });
            }
        }
        let copy = Cluster::copy(&[65, 33], View { dtype, offset: 0, strides: vec![1, 65] });
        cases.push(case(KernelOp::Elementwise(copy), &[(dtype, 65 * 33)], (dtype, 65 * 33)));
    }
    cases
}

/// The same program with a part of its outputs each.
fn split(cluster: Cluster, outputs: Vec<TensorType>) -> Vec<(Cluster, Vec<TensorType>)> {
    const MOST: usize = 24;
    let parts = cluster.outputs.chunks(MOST).zip(outputs.chunks(MOST));
    parts
        .map(|(ids, outputs)| (Cluster { outputs: ids.to_vec(), ..cluster.clone() }, outputs.to_vec()))
        .collect()
}

fn reductions() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I8, DType::U32, DType::I64] {
        for kind in ReduceKind::ALL {
            for (shape, kept_rank, strides) in [
                (vec![64, 1000], 1, vec![1000, 1]),
                (vec![64, 1000], 1, vec![1, 64]),
                (vec![16, 32, 49], 1, vec![49, 16 * 49, 1]),
                (vec![3, 1 << 20], 1, vec![1 << 20, 1]),
            ] {
                let elements = shape.iter().product();
                let mut program = Cluster::copy(&shape, View { dtype, offset: 0, strides });
                program.steps.push(Step { op: StepOp::Binary(BinaryOp::Mul, 0, 0), dtype });
                program.outputs = vec![1];
                let out = if kind == ReduceKind::ArgMax { DType::I32 } else { dtype };
                let kept = shape[..kept_rank].iter().product();
                let op = KernelOp::Reduce(Reduction { kind, program, kept_rank, dtype: out });
                cases.push(case(op, &[(dtype, elements)], (out, kept)));
            }
        }
    }
    cases
}

fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    let pairs = [
        (DType::F32, DType::F32),
        (DType::F16, DType::F16),
        (DType::BF16, DType::F32),
        (DType::F64, DType::F64),
        (DType::I8, DType::I8),
        (DType::I64, DType::I64),
    ];
    for (dtype, out_dtype) in pairs {
        for (batch, [m, k, n], is_turned) in
            [(4, [200, 100, 300], false), (1, [48, 20_000, 40], true), (2, [512, 256, 384], false)]
        {
            let epilogue = Epilogue { bias: is_turned.then_some(BiasAxis::Column), relu: is_turned };
            let view = |rows: usize, columns: usize| MatrixView {
                offset: 0,
                batch_strides: vec![(rows * columns) as i64],
                row_stride: if is_turned { 1 } else { columns as i64 },
                col_stride: if is_turned { rows as i64 } else { 1 },
            };
            let (lhs, rhs) = (view(m, k), view(k, n));
            let op = KernelOp::Dot(Dot { batch: vec![batch], m, n, k, lhs, rhs, dtype, out_dtype, epilogue });
            let inputs = [(dtype, batch * m * k), (dtype, batch * k * n), (dtype, n)];
            let operands = if is_turned { &inputs[..] } else { &inputs[..2] };
            cases.push(case(op, operands, (out_dtype, batch * m * n)));
        }
    }
    cases
}

fn convolutions() -> Vec<Case> {
    let mut cases = Vec::new();
    let geometries = [
        (ConvGeometry {
            batch: 8,
            in_channels: 6,
            out_channels: 10,
            groups: 2,
            input: vec![28, 28],
            kernel: vec![3, 3],
            output: vec![14, 14],
            stride: vec![2, 2],
            dilation: vec![1, 1],
            pad_low: vec![1, 1],
            pad_high: vec![1, 1],
        }),
        (ConvGeometry {
            batch: 2,
            in_channels: 3,
            out_channels: 4,
            groups: 1,
            input: vec![9, 8, 7],
            kernel: vec![2, 3, 1],
            output: vec![8, 6, 7],
            stride: vec![1, 1, 1],
            dilation: vec![1, 1, 1],
            pad_low: vec![0, 0, 0],
            pad_high: vec![0, 0, 0],
        }),
    ];
    for g in geometries {
        let product = |extents: &[usize]| extents.iter().product::<usize>();
        let input = g.batch * g.in_channels * product(&g.input);
        let filter = g.out_channels * (g.in_channels / g.groups) * product(&g.kernel);
        let output = g.batch * g.out_channels * product(&g.output);
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32] {
            for (operand, lens, result) in [
                (ConvOperand::Output, vec![input, filter, g.out_channels], output),
                (ConvOperand::Input, vec![output, filter], input),
                (ConvOperand::Filter, vec![output, input], filter),
            ] {
                let is_forward = operand == ConvOperand::Output;
                let epilogue = Epilogue { bias: is_forward.then_some(BiasAxis::Channel), relu: is_forward };
                let conv = Conv { operand, geometry: g.clone(), dtype, out_dtype: dtype, epilogue };
                let inputs: Vec<_> = lens.into_iter().map(|len| (dtype, len)).collect();
                cases.push(case(KernelOp::Conv(conv), &inputs, (dtype, result)));
            }
        }
    }
    cases
}

fn windows() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        for kind in WindowKind::ALL {
            let window = Window {
                kind,
                outer: 6,
                input: vec![9, 8],
                output: vec![5, 4],
                window: vec![3, 2],
                stride: vec![2, 2],
                pad_low: vec![1, 0],
                pad_high: vec![1, 0],
                dtype,
            };
            let (x, values) = (6 * 72, 6 * 20);
            let (inputs, output) = match kind {
                WindowKind::Max | WindowKind::Sum => (vec![x], values),
                WindowKind::ScatterToMax => (vec![x, values], x),
                WindowKind::GatherAtMax => (vec![x, x], values),
                WindowKind::Spread => (vec![values], x),
            };
            let inputs: Vec<_> = inputs.into_iter().map(|len| (dtype, len)).collect();
            cases.push(case(KernelOp::Window(window), &inputs, (dtype, output)));
        }
    }
    cases
}

fn paddings() -> Vec<Case> {
    let of = |dtype: DType| {
        let pad = Pad {
            input: vec![4, 5],
            output: vec![6, 15],
            low: vec![1, -1],
            high: vec![1, 3],
            interior: vec![0, 2],
            value: Literal::new(dtype, 2.0),
        };
        case(KernelOp::Pad(pad), &[(dtype, 20)], (dtype, 90))
    };
    [DType::U8, DType::F16, DType::F32, DType::F64].into_iter().map(of).collect()
}
