//! Loading and launching kernels: what runs, and what is refused and why.

mod common;

use common::*;
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Arg, ArgType, BufferSlice, DType, Device, ErrorKind, Kernel, KernelSource, MemoryKind, Scalar, Signature,
    as_bytes, from_bytes,
};

fn kind(result: halite_hal::Result<Kernel>) -> ErrorKind {
    result.expect_err("it must be refused").kind().clone()
}

#[test]
fn a_kernel_runs_on_slices() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let double = double_it(&device);
    let align = device.info().limits.offset_alignment_bytes as usize / 4;
    let values: Vec<f32> = (0..1000u16).map(f32::from).collect();
    let x = upload(&device, &stream, as_bytes(&values));
    let out = upload(&device, &stream, as_bytes(&[-1f32; 1000]));
    let slice = |buffer: &BufferSlice| buffer.slice(4 * align as u64, 4 * 500).unwrap();
    let args = [slice(&x).into(), slice(&out).into(), Scalar::U32(499).into()];
    // A second time from the buffers' remembered parts.
    for _ in 0..2 {
        stream.launch(&double, [32, 1, 1], &args).unwrap();
        let got = from_bytes::<f32>(&download(&stream, &out));
        for (index, value) in got.into_iter().enumerate() {
            let inside = (align..align + 499).contains(&index);
            assert_eq!(value, if inside { 2. * index as f32 } else { -1. });
        }
        stream.fill(&out, &(-1f32).to_ne_bytes()).unwrap();
    }
}

#[test]
fn neighbours_in_one_buffer_are_written_by_two_streams_at_once() {
    let Some(device) = device() else { return };
    let streams = [device.create_stream().unwrap(), device.create_stream().unwrap()];
    let increment = increment(&device);
    let step = device.info().limits.offset_alignment_bytes.max(1024);
    let len = 2000 * step;
    let buffer = upload(&device, &streams[0], &vec![0; len as usize]);
    streams[0].synchronize().unwrap();
    // More parts than a buffer remembers.
    for index in 0..2000u64 {
        let part = buffer.slice(index * step, step).unwrap();
        let args = [part.into(), Scalar::U32((step / 4) as u32).into()];
        streams[(index % 2) as usize].launch(&increment, [(step / 64) as u32, 1, 1], &args).unwrap();
    }
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    assert!(from_bytes::<u32>(&download(&streams[0], &buffer)).iter().all(|value| *value == 1));
}

#[test]
fn scalars_of_every_type_arrive_as_they_are() {
    let Some(device) = device() else { return };
    let has_f64 = device.info().has_feature("fp64");
    let source = format!(
        "__kernel void scalars(__global ulong *out, int a, uint b, long c, ulong d, float e, {} f) {{
            out[0] = (ulong)(long)a; out[1] = b; out[2] = (ulong)c; out[3] = d; out[4] = as_uint(e); out[5] = {};
        }}",
        if has_f64 { "double" } else { "ulong" },
        if has_f64 { "as_ulong(f)" } else { "f" },
    );
    let last = if has_f64 { Scalar::F64(-1.5e300) } else { Scalar::U64((-1.5e300f64).to_bits()) };
    let scalars = [
        Scalar::I32(i32::MIN),
        Scalar::U32(u32::MAX),
        Scalar::I64(i64::MIN + 1),
        Scalar::U64(u64::MAX - 2),
        Scalar::F32(-0.0),
        last,
    ];
    let mut args = vec![ArgType::Buffer { dtype: DType::U64, access: halite_hal::Access::Write }];
    args.extend(scalars.map(|scalar| ArgType::Scalar(scalar.dtype())));
    let kernel = device.load(&text(&source, "scalars", [1, 1, 1], args)).unwrap();
    let stream = device.create_stream().unwrap();
    let out = upload(&device, &stream, &[0xFF; 48]);
    let mut args: Vec<Arg> = vec![out.clone().into()];
    args.extend(scalars.map(Arg::from));
    stream.launch(&kernel, [1, 1, 1], &args).unwrap();
    let expected = [
        i64::from(i32::MIN) as u64,
        u32::MAX.into(),
        (i64::MIN + 1) as u64,
        u64::MAX - 2,
        0x8000_0000,
        (-1.5e300f64).to_bits(),
    ];
    assert_eq!(from_bytes::<u64>(&download(&stream, &out)), expected);
}

#[test]
fn grids_and_workgroups_have_three_axes() {
    let Some(device) = device() else { return };
    let source = "__kernel void place(__global uint *out) {
        size_t i = (get_global_id(2) * get_global_size(1) + get_global_id(1)) * get_global_size(0) + get_global_id(0);
        out[i] = (uint)((get_group_id(2) << 20) | (get_group_id(1) << 10) | get_group_id(0)) * 100
            + (uint)(get_local_id(2) * 20 + get_local_id(1) * 5 + get_local_id(0));
    }";
    let kernel = device.load(&text(source, "place", [2, 3, 4], vec![U32_BOTH])).unwrap();
    let stream = device.create_stream().unwrap();
    let grid = [3usize, 2, 5];
    let out = upload(&device, &stream, as_bytes(&[0u32; 6 * 6 * 20]));
    stream.launch(&kernel, [3, 2, 5], &[out.clone().into()]).unwrap();
    let got = from_bytes::<u32>(&download(&stream, &out));
    for (index, value) in got.into_iter().enumerate() {
        let [x, y, z] = [
            index % (2 * grid[0]),
            index / (2 * grid[0]) % (3 * grid[1]),
            index / (2 * grid[0]) / (3 * grid[1]),
        ];
        let group = ((z / 4) << 20) | ((y / 3) << 10) | (x / 2);
        assert_eq!(value as usize, (group * 100 + z % 4 * 20 + y % 3 * 5 + x % 2) & 0xFFFF_FFFF);
    }
}

#[test]
fn a_source_that_does_not_compile_brings_its_log() {
    let Some(device) = device() else { return };
    let source = "__kernel void broken(__global uint *x) { x[0] = undeclared_thing; }";
    let error = device.load(&text(source, "broken", [1, 1, 1], vec![U32_BOTH])).unwrap_err();
    let ErrorKind::Build { log } = error.kind() else { panic!("{error}") };
    assert!(log.contains("undeclared_thing"), "{log}");
    assert_eq!((error.call(), error.device()), (Some("clBuildProgram"), Some("opencl:0")));
    // The device goes on.
    increment(&device);
}

#[test]
fn threads_compile_and_launch_at_the_same_time() {
    let Some(device) = device() else { return };
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let device = &device;
            scope.spawn(move || {
                let stream = device.create_stream().unwrap();
                let out = upload(device, &stream, &[0; 4]);
                // Some of the programs are the same for two threads.
                for value in [thread / 2, 10 + thread] {
                    let source = format!("__kernel void value(__global uint *x) {{ x[0] = {value}u; }}");
                    let kernel = device.load(&text(&source, "value", [1, 1, 1], vec![U32_BOTH])).unwrap();
                    stream.launch(&kernel, [1, 1, 1], &[out.clone().into()]).unwrap();
                    assert_eq!(from_bytes::<u32>(&download(&stream, &out)), [value]);
                }
            });
        }
    });
}

#[test]
fn options_reach_the_compiler_and_wrong_ones_are_an_error() {
    let Some(device) = device() else { return };
    let source = "__kernel void value(__global uint *x) { x[0] = VALUE; }";
    let load = |options: &str| {
        device.load(&KernelSource::Text {
            language: "opencl-c",
            source: source.into(),
            entry: "value".into(),
            options: options.into(),
            workgroup: [1, 1, 1],
            signature: Signature::new(vec![U32_BOTH]),
            requires: Vec::new(),
        })
    };
    let stream = device.create_stream().unwrap();
    let out = upload(&device, &stream, &[0; 4]);
    for value in [7u32, 8] {
        let kernel = load(&format!("-DVALUE={value}u -cl-std=CL1.2")).unwrap();
        stream.launch(&kernel, [1, 1, 1], &[out.clone().into()]).unwrap();
        assert_eq!(from_bytes::<u32>(&download(&stream, &out)), [value]);
    }
    assert!(matches!(kind(load("")), ErrorKind::Build { .. }));
    assert!(matches!(
        kind(load("-DVALUE=1 --no-such-option")),
        ErrorKind::InvalidArgument | ErrorKind::Build { .. }
    ));
    assert_eq!(kind(load("-DVALUE=1\0")), ErrorKind::InvalidArgument);
}

#[test]
fn kernels_that_do_not_fit_their_signature_are_refused() {
    let Some(device) = device() else { return };
    let load = |entry: &str, args| device.load(&text(SOURCE, entry, [1, 1, 1], args));
    for (entry, args) in [
        ("no_such_kernel", vec![]),
        ("increment\0", vec![U32_BOTH, U32]),
        ("increment", vec![U32_BOTH]),
        ("increment", vec![U32_BOTH, U32, U32]),
        ("increment", vec![U32, U32]),
        ("increment", vec![U32_BOTH, U32_BOTH]),
    ] {
        let error = load(entry, args).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{entry}: {error}");
    }
    let error = load("no_such_kernel", vec![]).unwrap_err();
    assert!(error.message().contains("'no_such_kernel'"), "{error}");
    // A scalar of the wrong size is found by the driver, at the launch, and poisons nothing.
    let kernel = load("increment", vec![U32_BOTH, ArgType::Scalar(DType::U64)]).unwrap();
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[0; 4]);
    let error = stream.launch(&kernel, [1, 1, 1], &[buffer.into(), Scalar::U64(1).into()]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    stream.synchronize().unwrap();
}

#[test]
fn launches_beyond_a_limit_are_refused_before_the_driver() {
    let Some(device) = device() else { return };
    let limits = device.info().limits.clone();
    assert!(limits.max_workgroup_threads >= 1 && limits.max_workgroup[0] >= 1);
    let load = |workgroup| device.load(&text(SOURCE, "increment", workgroup, vec![U32_BOTH, U32]));
    let most = limits.max_workgroup[0];
    load([most, 1, 1]).unwrap();
    let requested = u64::from(most) + 1;
    assert_eq!(kind(load([most + 1, 1, 1])), ErrorKind::TooLarge { requested, limit: most.into() });
    assert!(matches!(kind(load([u32::MAX; 3])), ErrorKind::TooLarge { .. }));
    assert_eq!(kind(load([1, 0, 1])), ErrorKind::InvalidArgument);

    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[0; 4]);
    let kernel = load([1, 1, 1]).unwrap();
    let args = [buffer.clone().into(), Scalar::U32(1).into()];
    let [_, y, z] = limits.max_grid;
    for grid in [[1, y.saturating_add(1), 1], [1, 1, z.saturating_add(1)]] {
        assert_eq!(stream.launch(&kernel, grid, &args).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    }
    let odd = upload(&device, &stream, &[0; 16]);
    if limits.offset_alignment_bytes > 4 {
        let args = [odd.slice(4, 4).unwrap().into(), Scalar::U32(1).into()];
        assert_eq!(stream.launch(&kernel, [1, 1, 1], &args).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    }
    for args in [vec![buffer.clone().into()], vec![buffer.clone().into(), Arg::Scalar(Scalar::F32(1.))]] {
        assert_eq!(stream.launch(&kernel, [1, 1, 1], &args).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    }
    stream.synchronize().unwrap();
}

#[test]
fn a_workgroup_that_the_source_demands_must_be_the_one_that_is_launched() {
    let Some(device) = device() else { return };
    let source =
        "__kernel __attribute__((reqd_work_group_size(8, 2, 1))) void fixed(__global uint *x) { x[0] = 1; }";
    let load = |workgroup| device.load(&text(source, "fixed", workgroup, vec![U32_BOTH]));
    load([8, 2, 1]).unwrap();
    let error = load([16, 1, 1]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("[8, 2, 1]") && error.message().contains("[16, 1, 1]"), "{error}");
}

#[test]
fn local_memory_is_shared_in_a_workgroup_and_bounded() {
    let Some(device) = device() else { return };
    let source = "__kernel void reverse(__global uint *x) {
        __local uint row[WIDTH];
        row[get_local_id(0)] = x[get_global_id(0)];
        barrier(CLK_LOCAL_MEM_FENCE);
        x[get_global_id(0)] = row[get_local_size(0) - 1 - get_local_id(0)];
    }";
    let load = |width: u64| {
        let source = source.replace("WIDTH", &width.to_string());
        device.load(&text(&source, "reverse", [16, 1, 1], vec![U32_BOTH]))
    };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, as_bytes(&(0..32).collect::<Vec<u32>>()));
    stream.launch(&load(16).unwrap(), [2, 1, 1], &[buffer.clone().into()]).unwrap();
    let expected: Vec<u32> = (0..16).rev().chain((16..32).rev()).collect();
    assert_eq!(from_bytes::<u32>(&download(&stream, &buffer)), expected);
    let limit = device.info().limits.local_memory_bytes;
    assert!(limit >= 1 << 10);
    let error = load(limit / 4 + 1).unwrap_err();
    // Some drivers count what the compiler adds, others refuse it themselves.
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. } | ErrorKind::Build { .. }), "{error}");
}

#[test]
fn required_features_that_the_device_lacks_are_refused_by_name() {
    let Some(device) = device() else { return };
    let load = |feature: &str| {
        let mut source = text(SOURCE, "increment", [1, 1, 1], vec![U32_BOTH, U32]);
        if let KernelSource::Text { requires, .. } = &mut source {
            requires.push(feature.into());
        }
        device.load(&source)
    };
    let error = load("tensor-cores").unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unsupported);
    assert!(error.message().contains("tensor-cores"), "{error}");
    for feature in &device.info().features {
        load(feature).unwrap();
    }
}

#[test]
fn other_formats_are_unsupported() {
    let Some(device) = device() else { return };
    let mut source = text(SOURCE, "increment", [1, 1, 1], vec![U32_BOTH, U32]);
    if let KernelSource::Text { language, .. } = &mut source {
        *language = "cuda-c";
    }
    let error = device.load(&source).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unsupported);
    assert!(error.message().contains("opencl-c"), "{error}");
    let desc = OperandDesc::contiguous(DType::F32, &[2, 2]);
    let matmul = BuiltinOp::new(BuiltinKind::MatMul, vec![desc; 3]).unwrap();
    assert_eq!(kind(device.load(&KernelSource::Builtin(matmul))), ErrorKind::Unsupported);
}

#[test]
fn a_kernel_of_another_backend_is_refused() {
    let Some(device) = device() else { return };
    let (id, signature) = (device.id().clone(), Signature::new(vec![]));
    let stranger = Kernel::new(id, "stranger", signature, 0, Box::new(()));
    let stream = device.create_stream().unwrap();
    let error = stream.launch(&stranger, [1, 1, 1], &[]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
}

/// Runs a built-in on these arguments.
fn run(device: &Device, op: BuiltinOp, args: &[&BufferSlice]) {
    let kernel = device.load(&KernelSource::Builtin(op)).unwrap();
    let args: Vec<Arg> = args.iter().map(|slice| (*slice).clone().into()).collect();
    let stream = device.create_stream().unwrap();
    stream.launch(&kernel, [1, 1, 1], &args).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn builtins_copy_fill_and_add() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let desc = OperandDesc::contiguous(DType::F32, &[2, 3]);
    let op = |kind, count| BuiltinOp::new(kind, vec![desc.clone(); count]).unwrap();
    let [lhs, rhs, out] = [1., 2., 0.].map(|value: f32| {
        upload(&device, &stream, as_bytes(&[value, f32::INFINITY, -0., value, f32::NAN, 1e38]))
    });
    stream.synchronize().unwrap();
    run(&device, op(BuiltinKind::Add, 3), &[&lhs, &rhs, &out]);
    let sums = from_bytes::<f32>(&download(&stream, &out));
    assert_eq!(sums[..4], [3., f32::INFINITY, -0., 3.]);
    assert!(sums[2].is_sign_negative() && sums[4].is_nan());
    run(&device, op(BuiltinKind::Copy, 2), &[&rhs, &out]);
    assert_eq!(download(&stream, &out), download(&stream, &rhs));
    run(&device, op(BuiltinKind::Fill { value_bits: 1.25f32.to_bits().into() }, 1), &[&out]);
    assert_eq!(from_bytes::<f32>(&download(&stream, &out)), [1.25; 6]);
    // A range that is shorter than the layout is refused.
    let kernel = device.load(&KernelSource::Builtin(op(BuiltinKind::Copy, 2))).unwrap();
    let short = rhs.slice(0, 20).unwrap();
    let error = stream.launch(&kernel, [1, 1, 1], &[short.into(), out.into()]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
}

#[test]
fn builtins_walk_strides_and_do_nothing_without_elements() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let desc = |shape: &[u64], strides: &[i64]| OperandDesc {
        dtype: DType::U32,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let input = upload(&device, &stream, as_bytes(&(0..6).collect::<Vec<u32>>()));
    let out = upload(&device, &stream, as_bytes(&[9u32; 6]));
    stream.synchronize().unwrap();
    let transposed = vec![desc(&[3, 2], &[1, 3]), desc(&[3, 2], &[2, 1])];
    run(&device, BuiltinOp::new(BuiltinKind::Copy, transposed).unwrap(), &[&input, &out]);
    assert_eq!(from_bytes::<u32>(&download(&stream, &out)), [0, 3, 1, 4, 2, 5]);
    let repeated = vec![desc(&[3, 2], &[0, 0]), desc(&[3, 2], &[2, 1])];
    run(&device, BuiltinOp::new(BuiltinKind::Copy, repeated).unwrap(), &[&input, &out]);
    assert_eq!(from_bytes::<u32>(&download(&stream, &out)), [0; 6]);
    let nothing = vec![desc(&[3, 0], &[1, 3]), desc(&[3, 0], &[2, 1])];
    let empty = device.allocate(0, MemoryKind::Device).unwrap().all();
    run(&device, BuiltinOp::new(BuiltinKind::Copy, nothing).unwrap(), &[&empty, &empty]);
}

#[test]
fn builtins_add_small_floats_rounded_to_even_and_integers_that_wrap() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let add = |dtype: DType, lhs: &[u8], rhs: &[u8]| {
        let desc = OperandDesc::contiguous(dtype, &[(lhs.len() / dtype.size()) as u64]);
        let (lhs, rhs) = (upload(&device, &stream, lhs), upload(&device, &stream, rhs));
        let out = device.allocate(lhs.len_bytes(), MemoryKind::Device).unwrap().all();
        stream.synchronize().unwrap();
        run(&device, BuiltinOp::new(BuiltinKind::Add, vec![desc; 3]).unwrap(), &[&lhs, &rhs, &out]);
        download(&stream, &out)
    };
    // 2048 + 1 and 2048 + 3 lie half-way between neighbours of binary16; so do 256 + 1 and 256 + 3 of bfloat16.
    let half =
        |bits: [u16; 4]| add(DType::F16, as_bytes(&[0x6800u16, 0x6800, 0x7C00, 0x0001]), as_bytes(&bits));
    assert_eq!(from_bytes::<u16>(&half([0x3C00, 0x4200, 0x3C00, 0x0001])), [0x6800, 0x6802, 0x7C00, 0x0002]);
    let brain =
        |bits: [u16; 4]| add(DType::BF16, as_bytes(&[0x4380u16, 0x4380, 0x7F80, 0xFF80]), as_bytes(&bits));
    let sums = from_bytes::<u16>(&brain([0x3F80, 0x4040, 0x3F80, 0x7F80]));
    assert_eq!(sums[..3], [0x4380, 0x4382, 0x7F80]);
    assert!(sums[3] & 0x7F80 == 0x7F80 && sums[3] & 0x7F != 0, "infinity less infinity is {:#x}", sums[3]);
    assert_eq!(add(DType::U8, &[200, 1], &[100, 2]), [44, 3]);
    let wrapped = add(DType::I64, as_bytes(&[i64::MAX]), as_bytes(&[1i64]));
    assert_eq!(from_bytes::<i64>(&wrapped), [i64::MIN]);
}
