//! Loading: compiling, the cache on disk, images, limits, and the built-ins copy, fill and add.

mod common;

use common::*;
use half::{bf16, f16};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{
    Access, Arg, ArgType, DType, Device, ErrorKind, Kernel, KernelSource, MemoryKind, Result, Scalar,
    Signature, Stream, as_bytes, from_bytes,
};

fn binary(format: &'static str, bytes: &[u8], entry: &str, args: Vec<ArgType>) -> KernelSource {
    KernelSource::Binary {
        format,
        bytes: bytes.into(),
        entry: entry.into(),
        workgroup: [32, 1, 1],
        signature: Signature::new(args),
        requires: Vec::new(),
    }
}

fn kind(result: Result<Kernel>) -> ErrorKind {
    result.unwrap_err().kind().clone()
}

#[test]
fn source_that_does_not_compile_gives_the_compilers_log() {
    each_device(|device| {
        let bad = "#error this is no kernel\nextern \"C\" __global__ void k() {}";
        let error = device.load(&text(bad, "k", "", [1, 1, 1], vec![])).unwrap_err();
        let ErrorKind::Build { log } = error.kind() else { panic!("{error}") };
        assert!(log.contains("error"), "{log}");
        assert!(error.message().contains("kernel 'k'") && error.message().contains("sm_"), "{error}");
        assert_eq!(error.call(), Some("nvrtcCompileProgram"));
        let option = text(SOURCE, "increment", "--no-such-option", [1, 1, 1], vec![U32_BOTH, U32]);
        assert!(matches!(kind(device.load(&option)), ErrorKind::Build { .. }));
        let zero = text("a\0b", "k", "", [1, 1, 1], vec![]);
        assert_eq!(kind(device.load(&zero)), ErrorKind::InvalidArgument);
    });
}

#[test]
fn kernels_that_are_not_there_or_do_not_fit_their_signature_are_refused() {
    each_device(|device| {
        let error = load(device, "triple", vec![]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.message().contains("extern \"C\""), "{error}");
        assert_eq!(kind(load(device, "in\0side", vec![])), ErrorKind::InvalidArgument);
        // Drivers before CUDA 12.4 do not tell the parameters; there a launch is merely harmless.
        if !device.info().driver_version.contains("CUDA 12.4") {
            return;
        }
        let (f64_scalar, f32_scalar) = (ArgType::Scalar(DType::F64), ArgType::Scalar(DType::F32));
        for (args, part) in [
            (vec![U32_BOTH], "takes 2 arguments in its code, 1"),
            (vec![U32_BOTH, U32, U32], "takes 2 arguments in its code, 3"),
            (vec![U32_BOTH, f64_scalar], "argument 1"),
            (vec![U32, U32], "argument 0"),
        ] {
            let error = load(device, "increment", args).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::BadFormat);
            assert!(error.message().contains(part), "{error}");
        }
        load(device, "increment", vec![U32_BOTH, f32_scalar]).unwrap();
    });
}

#[test]
fn too_few_parameters_are_harmless_where_the_driver_does_not_tell_how_many_there_are() {
    let Some(fake) = Fake::new(&["OLD_DRIVER", "VERSION=11040"]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let out = device.allocate(48, MemoryKind::Device).unwrap().all();
    let f64_out = ArgType::Buffer { dtype: DType::F64, access: Access::Write };
    let kernel = device.load(&text(SOURCE, "scalars", "", [1, 1, 1], vec![f64_out])).unwrap();
    stream.launch(&kernel, [1, 1, 1], &[out.clone().into()]).unwrap();
    assert_eq!(from_bytes::<f64>(&download(&stream, &out)), [0.; 6]);
}

#[test]
fn workgroups_beyond_the_device_or_the_kernel_are_refused_before_the_driver() {
    each_device(|device| {
        for (workgroup, limit) in [([1025, 1, 1], 1024), ([1, 1, 65], 64), ([64, 32, 1], 1024)] {
            let error = device.load(&text(SOURCE, "greedy", "", workgroup, vec![])).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::TooLarge { limit: own, .. } if *own == limit),
                "{error}"
            );
        }
        // The compiled kernel takes fewer than the device.
        let error = device.load(&text(SOURCE, "greedy", "", [65, 1, 1], vec![])).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: 65, limit: 64 }, "{error}");
        let greedy = device.load(&text(SOURCE, "greedy", "", [64, 1, 1], vec![])).unwrap();
        let stream = device.create_stream().unwrap();
        stream.launch(&greedy, [3, 2, 1], &[]).unwrap();
        let error = stream.launch(&greedy, [1, 65536, 1], &[]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        let none = device.load(&text(SOURCE, "greedy", "", [0, 1, 1], vec![]));
        assert_eq!(kind(none), ErrorKind::InvalidArgument);
    });
}

#[test]
fn launches_that_do_not_fit_are_refused_before_the_driver() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let kernel = load(&device, "increment", vec![U32_BOTH, U32]).unwrap();
    let values = upload_u32(&device, &stream, &[1, 2, 3]);
    let launched = fake.count("cuLaunchKernel");
    let good = vec![Arg::from(values.clone()), Scalar::U32(3).into()];
    let [_, y, z] = device.info().limits.max_grid;
    for (grid, args) in [
        ([1, y + 1, 1], good.clone()),
        ([1, 1, z + 1], good.clone()),
        ([1, 1, 1], vec![values.clone().into()]),
        ([1, 1, 1], vec![values.clone().into(), Scalar::F32(3.0).into()]),
        ([1, 1, 1], vec![Scalar::U32(3).into(), values.clone().into()]),
        ([1, 1, 1], vec![values.clone().into(), Scalar::U32(3).into(), Scalar::U32(3).into()]),
    ] {
        let error = stream.launch(&kernel, grid, &args).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("kernel 'increment'"), "{error}");
    }
    assert_eq!(fake.count("cuLaunchKernel"), launched);
    // The stream goes on.
    stream.launch(&kernel, [1, 1, 1], &good).unwrap();
    assert_eq!(download_u32(&stream, &values), [2, 3, 4]);
}

#[test]
fn dynamic_shared_memory_is_given_where_the_source_asks_for_it() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let out = upload_u32(device, &stream, &[0]);
        let load = |bytes: u64| {
            let options = format!("--dynamic-shared-bytes={bytes}");
            device.load(&text(SOURCE, "shared_bytes", &options, [1, 1, 1], vec![U32_BOTH]))
        };
        let most = device.info().limits.local_memory_bytes;
        for bytes in [64, 48 << 10, most] {
            stream.launch(&load(bytes).unwrap(), [1, 1, 1], &[out.clone().into()]).unwrap();
            assert_eq!(u64::from(download_u32(&stream, &out)[0]), bytes);
        }
        assert_eq!(kind(load(most + 4)), ErrorKind::TooLarge { requested: most + 4, limit: most });
        assert_eq!(kind(load(1 << 40)), ErrorKind::InvalidArgument);
    });
}

#[test]
fn a_compiled_kernel_is_kept_on_disk_and_a_damaged_one_is_compiled_again() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let args = || vec![U32_BOTH, U32];
    let compiled = || fake.count("nvrtcCompileProgram");
    load(&device, "increment", args()).unwrap();
    assert_eq!(compiled(), 1);
    // Another kernel of the same source, and another process, as it were.
    load(&device, "twice", vec![F32_IN, F32_OUT, U32]).unwrap();
    drop(device);
    let device = fake.open();
    load(&device, "increment", args()).unwrap();
    assert_eq!(compiled(), 1);
    // Options and source count.
    device.load(&text(SOURCE, "increment", "-DN=1", [1, 1, 1], args())).unwrap();
    device.load(&text(&format!("{SOURCE} "), "increment", "", [1, 1, 1], args())).unwrap();
    assert_eq!(compiled(), 3);
    for entry in std::fs::read_dir(fake.cache().join("cuda")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    load(&device, "increment", args()).unwrap();
    assert_eq!(compiled(), 4);
    // One that is whole and that the driver refuses all the same.
    fake.fail("cuModuleLoadDataEx", 200, 0);
    load(&device, "increment", args()).unwrap();
    assert_eq!(compiled(), 5);
    load(&device, "increment", args()).unwrap();
    assert_eq!(compiled(), 5);
}

#[test]
fn a_kernel_that_is_refused_for_another_reason_is_not_compiled_again() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    load(&device, "increment", vec![U32_BOTH, U32]).unwrap();
    load(&device, "increment", vec![U32_BOTH]).unwrap_err();
    fake.fail("cuModuleLoadDataEx", 2, 0);
    let error = load(&device, "increment", vec![U32_BOTH, U32]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfMemory { .. }), "{error}");
    assert_eq!(fake.count("nvrtcCompileProgram"), 1);
    wait_until("what was loaded is unloaded", || fake.count("module") == 0);
}

#[test]
fn damaged_images_are_refused_before_the_driver_reads_them() {
    each_device(|device| {
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = 190;
        // A table of sections far behind the end.
        header[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        header[58] = 64;
        header[60] = 1;
        for bytes in [&b""[..], b"not a cubin", &[0; 200], &header[..63], &header] {
            let error = device.load(&binary("cubin", bytes, "k", vec![])).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::BadFormat, "{error}");
            assert!(error.message().contains("bytes"), "{error}");
        }
        for text in [&b""[..], b"not PTX", b".version 7.0\0.target sm_50"] {
            assert_eq!(kind(device.load(&binary("ptx", text, "k", vec![]))), ErrorKind::BadFormat);
        }
        let error = device.load(&binary("ptx", b".version FAKE_BAD_PTX", "k", vec![])).unwrap_err();
        let ErrorKind::Build { log } = error.kind() else { panic!("{error}") };
        assert!(log.contains("ptxas"), "{log}");
        assert!(error.message().contains("CUDA_ERROR_INVALID_PTX, code 218"), "{error}");
        let error = device.load(&binary("spirv", b"", "k", vec![])).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unsupported);
    });
}

#[test]
fn ptx_runs_without_a_compiler_of_ours() {
    const PTX: &str = ".version 6.0
.target sm_50
.address_size 64
.visible .entry increment(.param .u64 x, .param .u32 n)
{
    .reg .pred %p; .reg .b32 %i, %n, %v; .reg .b64 %x, %at;
    ld.param.u64 %x, [x]; ld.param.u32 %n, [n];
    mov.u32 %i, %tid.x;
    setp.ge.u32 %p, %i, %n;
    @%p ret;
    cvta.to.global.u64 %x, %x;
    mad.wide.u32 %at, %i, 4, %x;
    ld.global.u32 %v, [%at];
    add.u32 %v, %v, 1;
    st.global.u32 [%at], %v;
    ret;
}
";
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let kernel = device.load(&binary("ptx", PTX.as_bytes(), "increment", vec![U32_BOTH, U32])).unwrap();
        let values = upload_u32(device, &stream, &[1, 2, 3]);
        stream.launch(&kernel, [1, 1, 1], &[values.clone().into(), Scalar::U32(3).into()]).unwrap();
        assert_eq!(download_u32(&stream, &values), [2, 3, 4]);
    });
}

fn builtin(device: &Device, kind: BuiltinKind, operands: Vec<OperandDesc>) -> Result<Kernel> {
    device.load(&KernelSource::Builtin(BuiltinOp::new(kind, operands).unwrap()))
}

fn run(stream: &Stream, kernel: &Kernel, args: Vec<Arg>) -> Result<()> {
    stream.launch(kernel, [1, 1, 1], &args)
}

#[test]
fn builtins_copy_fill_and_add() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let desc = OperandDesc::contiguous(DType::F32, &[2, 3]);
        let kernel = |kind, count| builtin(device, kind, vec![desc.clone(); count]).unwrap();
        let [lhs, rhs, out] = [1., 2., 0.].map(|value: f32| {
            upload(device, &stream, as_bytes(&[value, f32::INFINITY, -0., value, f32::NAN, 1e38]))
        });
        let add = kernel(BuiltinKind::Add, 3);
        run(&stream, &add, vec![lhs.into(), rhs.clone().into(), out.clone().into()]).unwrap();
        let sums = from_bytes::<f32>(&download(&stream, &out));
        assert_eq!(sums[..4], [3., f32::INFINITY, -0., 3.]);
        assert!(sums[2].is_sign_negative() && sums[4].is_nan());
        run(&stream, &kernel(BuiltinKind::Copy, 2), vec![rhs.clone().into(), out.clone().into()]).unwrap();
        assert_eq!(download(&stream, &out), download(&stream, &rhs));
        let value_bits = u64::from(1.25f32.to_bits());
        run(&stream, &kernel(BuiltinKind::Fill { value_bits }, 1), vec![out.clone().into()]).unwrap();
        assert_eq!(from_bytes::<f32>(&download(&stream, &out)), [1.25; 6]);
    });
}

#[test]
fn builtins_add_every_type_of_number() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let sum = |dtype: DType, lhs: &[u8], rhs: &[u8]| {
            let count = (lhs.len() / dtype.size()) as u64;
            let add =
                builtin(device, BuiltinKind::Add, vec![OperandDesc::contiguous(dtype, &[count]); 3]).unwrap();
            let [lhs, rhs] = [lhs, rhs].map(|bytes| upload(device, &stream, bytes));
            let out = device.allocate(lhs.len_bytes(), MemoryKind::Device).unwrap().all();
            run(&stream, &add, vec![lhs.into(), rhs.into(), out.clone().into()]).unwrap();
            download(&stream, &out)
        };
        // Integers wrap.
        assert_eq!(sum(DType::I8, as_bytes(&[127i8, -5]), as_bytes(&[1i8, 3])), as_bytes(&[-128i8, -2]));
        assert_eq!(sum(DType::U8, &[255, 1], &[1, 1]), [0, 2]);
        assert_eq!(sum(DType::I16, as_bytes(&[i16::MIN]), as_bytes(&[-1i16])), as_bytes(&[i16::MAX]));
        assert_eq!(sum(DType::U16, as_bytes(&[65535u16]), as_bytes(&[2u16])), as_bytes(&[1u16]));
        assert_eq!(sum(DType::I32, as_bytes(&[i32::MAX]), as_bytes(&[1i32])), as_bytes(&[i32::MIN]));
        assert_eq!(sum(DType::U32, as_bytes(&[7u32]), as_bytes(&[u32::MAX])), as_bytes(&[6u32]));
        assert_eq!(sum(DType::I64, as_bytes(&[i64::MAX]), as_bytes(&[1i64])), as_bytes(&[i64::MIN]));
        assert_eq!(
            sum(DType::U64, as_bytes(&[1u64 << 63]), as_bytes(&[1u64])),
            as_bytes(&[(1u64 << 63) + 1])
        );
        assert_eq!(sum(DType::F64, as_bytes(&[0.1f64]), as_bytes(&[0.2f64])), as_bytes(&[0.1f64 + 0.2]));
        // Halves are rounded once, to the nearest, ties to even.
        let halves: Vec<(f16, f16)> =
            [(1., 1. / 2048.), (1., 3. / 2048.), (65504., 16.), (-1., 1.), (6e-8, 6e-8)]
                .map(|(a, b): (f32, f32)| (f16::from_f32(a), f16::from_f32(b)))
                .into();
        let (lhs, rhs): (Vec<_>, Vec<_>) = halves.iter().copied().unzip();
        let expected: Vec<_> = halves.iter().map(|(a, b)| f16::from_f64(a.to_f64() + b.to_f64())).collect();
        assert_eq!(sum(DType::F16, as_bytes(&lhs), as_bytes(&rhs)), as_bytes(&expected));
        let (lhs, rhs) = ([bf16::from_f32(1.), bf16::NAN], [bf16::from_f32(1. / 256.), bf16::ONE]);
        let got = from_bytes::<bf16>(&sum(DType::BF16, as_bytes(&lhs), as_bytes(&rhs)));
        assert!(got[0] == bf16::ONE && got[1].is_nan());
        let error = builtin(device, BuiltinKind::Add, vec![OperandDesc::contiguous(DType::Bool, &[1]); 3]);
        assert_eq!(kind(error), ErrorKind::Unsupported);
    });
}

#[test]
fn builtins_move_elements_of_every_size_between_strided_operands() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        for dtype in [DType::U8, DType::F16, DType::U32, DType::F64] {
            let size = dtype.size();
            let desc = |shape: &[u64], strides: &[i64]| OperandDesc {
                dtype,
                shape: shape.to_vec(),
                strides: strides.to_vec(),
            };
            let source: Vec<u8> = (0..15 * size as u8).collect();
            let element = |index: usize| &source[index * size..][..size];
            let input = upload(device, &stream, &source);
            // A transpose of 3 x 5, then each row's first element again and again.
            for (strides, expected) in [
                ([1, 5], (0..15).map(|i| i % 3 * 5 + i / 3).collect::<Vec<usize>>()),
                ([0, 5], (0..15).map(|i| i % 3 * 5).collect()),
            ] {
                let out = device.allocate((15 * size) as u64, MemoryKind::Device).unwrap().all();
                let operands = vec![desc(&[5, 3], &strides), desc(&[5, 3], &[3, 1])];
                let copy = builtin(device, BuiltinKind::Copy, operands).unwrap();
                run(&stream, &copy, vec![input.clone().into(), out.clone().into()]).unwrap();
                let expected: Vec<u8> = expected.into_iter().flat_map(element).copied().collect();
                assert_eq!(download(&stream, &out), expected, "{dtype}");
            }
            // Every other element of two rows.
            let out = upload(device, &stream, &vec![0xAA; 12 * size]);
            let value_bits = 0x1122_3344_5566_7788;
            let fill = BuiltinKind::Fill { value_bits };
            let fill = builtin(device, fill, vec![desc(&[2, 3], &[6, 2])]).unwrap();
            run(&stream, &fill, vec![out.clone().into()]).unwrap();
            let got = download(&stream, &out);
            for (index, got) in got.chunks(size).enumerate() {
                let expected = if index % 2 == 0 { value_bits.to_le_bytes() } else { [0xAA; 8] };
                assert_eq!(got, &expected[..size], "{dtype}, element {index}");
            }
        }
    });
}

#[test]
fn builtins_without_elements_do_nothing_and_too_short_ranges_are_refused() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let empty = OperandDesc::contiguous(DType::F32, &[3, 0]);
        let add = builtin(device, BuiltinKind::Add, vec![empty; 3]).unwrap();
        let nothing = || Arg::from(device.allocate(0, MemoryKind::Device).unwrap().all());
        run(&stream, &add, vec![nothing(), nothing(), nothing()]).unwrap();
        let copy =
            builtin(device, BuiltinKind::Copy, vec![OperandDesc::contiguous(DType::F32, &[5]); 2]).unwrap();
        let [short, long] = [16, 20].map(|len| device.allocate(len, MemoryKind::Device).unwrap().all());
        let error = run(&stream, &copy, vec![short.into(), long.into()]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.message().contains("has 16 bytes, its layout needs 20"), "{error}");
        stream.synchronize().unwrap();
    });
}

#[test]
fn kernels_outlive_their_handles_while_they_run() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let gates = Gates::new(&device);
    let value = upload_u32(&device, &stream, &[0]);
    let gate = gates.close(&stream);
    let loaded = fake.count("module");
    stream.launch(&increment(&device), [1, 1, 1], &[value.clone().into(), Scalar::U32(1).into()]).unwrap();
    assert_eq!(fake.count("module"), loaded + 1);
    gate.open();
    assert_eq!(download_u32(&stream, &value), [1]);
    wait_until("the module is unloaded", || fake.count("module") == loaded);
}

/// What a launch costs beside the driver's own call, which here returns at once.
#[test]
#[ignore = "prints a measurement"]
fn launches_cost_little_beside_the_drivers_call() {
    let Some(fake) = Fake::new(&["FREE_LAUNCHES"]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let kernel = load(&device, "twice", vec![F32_IN, F32_OUT, U32]).unwrap();
    let [x, out] = [(); 2].map(|()| device.allocate(400, MemoryKind::Device).unwrap().all());
    let args = [x.into(), out.into(), Scalar::U32(100).into()];
    const LAUNCHES: u32 = 200_000;
    for _ in 0..3 {
        let begin = std::time::Instant::now();
        for _ in 0..LAUNCHES {
            stream.launch(&kernel, [4, 1, 1], &args).unwrap();
        }
        println!("{:?} a launch", begin.elapsed() / LAUNCHES);
        stream.synchronize().unwrap();
    }
}

#[test]
fn features_of_one_architecture_alone_are_compiled_for_it() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.backend().open(0).unwrap();
    let of = |feature: &str| {
        let mut source = text(SOURCE, "increment", "", [1, 1, 1], vec![U32_BOTH, U32]);
        let KernelSource::Text { requires, .. } = &mut source else { unreachable!("it is text") };
        requires.push(feature.to_owned());
        device.load(&source)
    };
    of("sm_80").unwrap();
    of("sm_90a").unwrap();
    assert_eq!(fake.count("nvrtcCompileProgram"), 2);
    assert_eq!(kind(of("sm_100")), ErrorKind::Unsupported);
}
