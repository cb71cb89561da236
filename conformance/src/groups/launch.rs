//! Kernels of the device's own format: what runs, what arrives, and what is refused before it runs.

use super::Tests;
use crate::context::{Context, download, holds_words};
use crate::outcome::{Outcome, Stop, unsupported};
use crate::program::{Format, MAX_ELEMENTS, TestKernel, binary};
use halite_hal::{
    Access, Arg, ArgType, BufferSlice, DType, ErrorKind, Kernel, KernelSource, NativeKernel, Scalar,
    Signature, Stream,
};

pub(super) fn tests(tests: &mut Tests) {
    running(tests);
    grids(tests);
    arguments(tests);
    loading(tests);
    lifetimes(tests);
}

pub(super) fn words(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed)).collect()
}

pub(super) fn number(value: usize) -> Arg {
    Scalar::U32(value as u32).into()
}

pub(super) fn affine(
    stream: &Stream,
    kernel: &Kernel,
    input: &BufferSlice,
    out: &BufferSlice,
    (n, a, b): (usize, usize, usize),
) -> halite_hal::Result<()> {
    let args = [input.clone().into(), out.clone().into(), number(n), number(a), number(b)];
    stream.launch(kernel, [1, 1, 1], &args)
}

pub(super) fn update(
    stream: &Stream,
    kernel: &Kernel,
    x: &BufferSlice,
    n: usize,
    b: usize,
) -> halite_hal::Result<()> {
    stream.launch(kernel, [1, 1, 1], &[x.clone().into(), number(n), number(b)])
}

fn running(tests: &mut Tests) {
    for n in [0usize, 1, 3, 64, 257, MAX_ELEMENTS] {
        tests.add(
            format!("copies-{n}-elements"),
            "a kernel writes what it should and no more",
            move |context| {
                let kernel = context.kernel(TestKernel::Copy)?;
                let stream = context.stream()?;
                let values = words(n + 9, 5);
                let (input, out) = (
                    context.upload_words(&stream, &values)?,
                    context.upload_words(&stream, &vec![7; n + 9])?,
                );
                stream.launch(&kernel, [1, 1, 1], &[input.into(), out.clone().into(), number(n)])?;
                let mut expected = vec![7; n + 9];
                expected[..n].copy_from_slice(&values[..n]);
                holds_words(&stream, &out, &expected, "the output")
            },
        );
    }
    tests.add("arithmetic-wraps", "integers of a kernel wrap", |context| {
        let kernel = context.kernel(TestKernel::Affine)?;
        let stream = context.stream()?;
        let values = [0, 1, u32::MAX, 1 << 31, 12345, 0xdead_beef];
        let (input, out) = (context.upload_words(&stream, &values)?, context.upload_words(&stream, &[0; 6])?);
        affine(&stream, &kernel, &input, &out, (6, 3_000_000_019, 4_000_000_007))?;
        let expected = values.map(|x| x.wrapping_mul(3_000_000_019).wrapping_add(4_000_000_007));
        holds_words(&stream, &out, &expected, "the output")
    });
    tests.add("updates-in-place", "an argument that is read and written holds the new values", |context| {
        let kernel = context.kernel(TestKernel::Update)?;
        let stream = context.stream()?;
        let values = words(300, 1);
        let x = context.upload_words(&stream, &values)?;
        update(&stream, &kernel, &x, 299, 11)?;
        let mut expected: Vec<u32> = values.iter().map(|x| x.wrapping_mul(3).wrapping_add(11)).collect();
        expected[299] = values[299];
        holds_words(&stream, &x, &expected, "the buffer")
    });
    tests.add("several-outputs", "a kernel may write several buffers", |context| {
        let kernel = context.kernel(TestKernel::Split)?;
        let stream = context.stream()?;
        let values = words(100, 3);
        let input = context.upload_words(&stream, &values)?;
        let (low, high) =
            (context.upload_words(&stream, &[0; 100])?, context.upload_words(&stream, &[0; 100])?);
        stream.launch(
            &kernel,
            [1, 1, 1],
            &[input.into(), low.clone().into(), high.clone().into(), number(100)],
        )?;
        for (out, plus) in [(low, 1), (high, 2)] {
            let expected: Vec<u32> = values.iter().map(|x| x.wrapping_add(plus)).collect();
            holds_words(&stream, &out, &expected, "an output")?;
        }
        Ok(())
    });
    tests.add("scalars-of-every-type", "numbers arrive with all their bits", |context| {
        let kernel = context.kernel(TestKernel::Scalars)?;
        let stream = context.stream()?;
        let out = context.upload_words(&stream, &[0; 5])?;
        for (a, b, c, d) in [
            (i32::MIN, u32::MAX, -0.0f32, i64::MIN + 7),
            (-1, 0, f32::INFINITY, -1),
            (7, 1, f32::from_bits(0x0000_0001), i64::MAX),
        ] {
            let scalars = [Scalar::I32(a), Scalar::U32(b), Scalar::F32(c), Scalar::I64(d)];
            let args: Vec<Arg> = [Arg::from(out.clone())].into_iter().chain(scalars.map(Arg::from)).collect();
            stream.launch(&kernel, [1, 1, 1], &args)?;
            let expected = [a as u32, b, c.to_bits(), d as u32, (d as u64 >> 32) as u32];
            holds_words(&stream, &out, &expected, "the bits")?;
        }
        Ok(())
    });
    tests.add("nan-arrives-as-a-nan", "a number that is none arrives as such", |context| {
        let kernel = context.kernel(TestKernel::Scalars)?;
        let stream = context.stream()?;
        let out = context.upload_words(&stream, &[0; 5])?;
        let scalars = [Scalar::I32(0), Scalar::U32(0), Scalar::F32(f32::NAN), Scalar::I64(0)];
        let args: Vec<Arg> = [Arg::from(out.clone())].into_iter().chain(scalars.map(Arg::from)).collect();
        stream.launch(&kernel, [1, 1, 1], &args)?;
        let bits = crate::context::download_words(&stream, &out)?[2];
        ensure!(f32::from_bits(bits).is_nan(), "it arrives as {bits:#010x}");
        Ok(())
    });
    tests.add(
        "on-slices",
        "arguments may lie inside of larger buffers, at the device's alignment",
        |context| {
            let kernel = context.kernel(TestKernel::Affine)?;
            let stream = context.stream()?;
            let align = (context.info().limits.offset_alignment_bytes.max(4) / 4) as usize;
            let values = words(3 * align + 50, 9);
            let input = context.upload_words(&stream, &values)?;
            let out = context.upload_words(&stream, &vec![1; 3 * align + 50])?;
            let part = |slice: &BufferSlice, at: usize| slice.slice(4 * at as u64, 160);
            affine(&stream, &kernel, &part(&input, align)?, &part(&out, 2 * align)?, (40, 1, 1))?;
            let mut expected = vec![1; 3 * align + 50];
            for i in 0..40 {
                expected[2 * align + i] = values[align + i].wrapping_add(1);
            }
            holds_words(&stream, &out, &expected, "the buffer around the output")
        },
    );
    tests.add("two-inputs-may-be-one", "ranges that are only read may overlap", |context| {
        let (copy, stream) = (context.kernel(TestKernel::Copy)?, context.stream()?);
        let input = context.upload_words(&stream, &words(64, 2))?;
        let outs = [context.upload_words(&stream, &[0; 64])?, context.upload_words(&stream, &[0; 64])?];
        for out in &outs {
            stream.launch(&copy, [1, 1, 1], &[input.clone().into(), out.clone().into(), number(64)])?;
        }
        outs.iter().try_for_each(|out| holds_words(&stream, out, &words(64, 2), "an output"))
    });
    tests.add(
        "a-thousand-in-order",
        "a thousand launches on one stream run one after the other",
        |context| {
            let (kernel, stream) = (context.kernel(TestKernel::Update)?, context.stream()?);
            let x = context.upload_words(&stream, &[1, 2, 3])?;
            let mut expected = [1u32, 2, 3];
            for round in 0..1000usize {
                update(&stream, &kernel, &x, 3, round)?;
                expected = expected.map(|x| x.wrapping_mul(3).wrapping_add(round as u32));
            }
            holds_words(&stream, &x, &expected, "the buffer")
        },
    );
    tests.add("one-kernel-many-threads", "one kernel may be launched by many threads at once", |context| {
        let kernel = context.kernel(TestKernel::Update)?;
        super::in_threads(4, |index| {
            let stream = context.stream()?;
            let x = context.upload_words(&stream, &[index as u32; 10])?;
            let mut expected = index as u32;
            for round in 0..50 {
                update(&stream, &kernel, &x, 10, round)?;
                expected = expected.wrapping_mul(3).wrapping_add(round as u32);
            }
            holds_words(&stream, &x, &[expected; 10], "the buffer")
        })
    });
}

fn grids(tests: &mut Tests) {
    for groups in [1usize, 2, 7, 64, 1000] {
        tests.add(format!("grid-of-{groups}"), "every workgroup of a grid runs once", move |context| {
            let kernel = context.kernel(TestKernel::Blocks)?;
            let groups = groups.min(context.info().limits.max_grid[0] as usize);
            run_grid(context, &kernel, [groups as u32, 1, 1])
        });
    }
    for (name, grid) in [("2-x-3", [2, 3, 1]), ("1-x-1-x-5", [1, 1, 5]), ("3-x-4-x-5", [3, 4, 5])] {
        tests.add(
            format!("grid-of-{name}"),
            "grids have as many axes as the device claims, and no more",
            move |context| {
                let kernel = context.kernel(TestKernel::Blocks)?;
                let limits = context.info().limits.max_grid;
                if (0..3).all(|axis| grid[axis] <= limits[axis]) {
                    return run_grid(context, &kernel, grid);
                }
                let result = run_grid(context, &kernel, grid);
                match result {
                    Err(Stop::Failed(reason)) if reason.contains("invalid argument") => {
                        Err(unsupported(format!("the largest grid is {limits:?}, and more is refused")))
                    }
                    Ok(()) => Err(crate::outcome::failed(format!(
                        "the largest grid is {limits:?}, and {grid:?} runs"
                    ))),
                    other => other,
                }
            },
        );
    }
    tests.add("grids-with-a-zero-do-nothing", "a grid with a zero is legal and runs nothing", |context| {
        let (kernel, stream) = (context.kernel(TestKernel::Blocks)?, context.stream()?);
        let out = context.upload_words(&stream, &[9; 8])?;
        for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]] {
            stream.launch(&kernel, grid, &[out.clone().into(), number(1)])?;
        }
        holds_words(&stream, &out, &[9; 8], "the output")
    });
    tests.add(
        "grids-beyond-the-limit-are-refused",
        "a grid beyond the device's limit is an invalid argument",
        |context| {
            let (kernel, stream) = (context.kernel(TestKernel::Blocks)?, context.stream()?);
            let out = context.upload_words(&stream, &[9; 8])?;
            let limits = context.info().limits.max_grid;
            for axis in 0..3 {
                let Some(beyond) = limits[axis].checked_add(1) else { continue };
                let mut grid = [1; 3];
                grid[axis] = beyond;
                let result = stream.launch(&kernel, grid, &[out.clone().into(), number(1)]);
                ensure_kind!(
                    result,
                    ErrorKind::InvalidArgument,
                    "a grid of {grid:?} where {limits:?} is the largest"
                );
            }
            holds_words(&stream, &out, &[9; 8], "the output")
        },
    );
}

fn run_grid(context: &Context, kernel: &Kernel, grid: [u32; 3]) -> Outcome {
    let stream = context.stream()?;
    let count = grid.iter().product::<u32>() as usize;
    let out = context.upload_words(&stream, &vec![0; count])?;
    stream.launch(kernel, grid, &[out.clone().into(), number(100)])?;
    let expected: Vec<u32> = (0..count as u32).map(|group| 100 + group).collect();
    holds_words(&stream, &out, &expected, "the output")
}

/// What a launch of `test_copy` is given instead of what it wants.
type Wrong = fn(&Context, Vec<Arg>) -> Result<Vec<Arg>, Stop>;

fn arguments(tests: &mut Tests) {
    let cases: [(&str, &str, Wrong); 10] = [
        ("none", "without arguments", |_, _| Ok(Vec::new())),
        ("too-few", "with an argument less", |_, mut args| {
            args.pop();
            Ok(args)
        }),
        ("too-many", "with an argument more", |_, mut args| {
            args.push(number(1));
            Ok(args)
        }),
        ("a-scalar-for-a-buffer", "with a number for a buffer", |_, mut args| {
            args[0] = number(1);
            Ok(args)
        }),
        ("a-buffer-for-a-scalar", "with a buffer for a number", |_, mut args| {
            args[2] = args[0].clone();
            Ok(args)
        }),
        ("another-scalar-type", "with a number of another type", |_, mut args| {
            args[2] = Scalar::F32(8.0).into();
            Ok(args)
        }),
        ("a-ragged-length", "with a range of no whole elements", |context, mut args| {
            args[0] = context.upload(&context.stream()?, &[0; 33])?.into();
            Ok(args)
        }),
        (
            "a-wrong-offset",
            "with a range at an offset that the elements do not allow",
            |context, mut args| {
                args[0] = context.upload(&context.stream()?, &[0; 64])?.slice(2, 32)?.into();
                Ok(args)
            },
        ),
        ("input-as-output", "with one range to read and to write", |_, mut args| {
            args[1] = args[0].clone();
            Ok(args)
        }),
        (
            "overlapping-input-and-output",
            "with ranges to read and to write that overlap",
            |context, mut args| {
                let align = context.info().limits.offset_alignment_bytes.max(4);
                let whole = context.upload(&context.stream()?, &vec![0; 3 * align as usize])?;
                args[0] = whole.slice(0, 2 * align)?.into();
                args[1] = whole.slice(align, 2 * align)?.into();
                Ok(args)
            },
        ),
    ];
    for (name, text, wrong) in cases {
        tests.add(
            format!("refuses-{name}"),
            format!("a launch {text} is an invalid argument, and the stream goes on"),
            move |context| {
                let (kernel, stream) = (context.kernel(TestKernel::Copy)?, context.stream()?);
                let values = words(8, 4);
                let (input, out) =
                    (context.upload_words(&stream, &values)?, context.upload_words(&stream, &[6; 8])?);
                let right: Vec<Arg> = vec![input.into(), out.clone().into(), number(8)];
                stream.synchronize()?;
                let result = stream.launch(&kernel, [1, 1, 1], &wrong(context, right.clone())?);
                ensure_kind!(result, ErrorKind::InvalidArgument, "the launch");
                holds_words(&stream, &out, &[6; 8], "the output after the refusal")?;
                stream.launch(&kernel, [1, 1, 1], &right)?;
                holds_words(&stream, &out, &values, "the output of the launch behind it")
            },
        );
    }
    tests.add(
        "offsets-follow-the-device",
        "a range at an offset that the device does not take is refused",
        |context| {
            let align = context.info().limits.offset_alignment_bytes;
            if align <= 4 {
                return Err(unsupported("the device takes every offset of whole elements"));
            }
            let (kernel, stream) = (context.kernel(TestKernel::Copy)?, context.stream()?);
            let input = context.upload(&stream, &vec![0; 4 * align as usize])?;
            let out = context.upload_words(&stream, &[6; 8])?;
            let result = stream.launch(
                &kernel,
                [1, 1, 1],
                &[input.slice(align / 2, 32)?.into(), out.into(), number(8)],
            );
            ensure_kind!(
                result,
                ErrorKind::InvalidArgument,
                "offset {} where {align} is the alignment",
                align / 2
            );
            Ok(())
        },
    );
}

fn loading(tests: &mut Tests) {
    tests.add("several-entry-points", "kernels of one program are loaded by their names", |context| {
        let stream = context.stream()?;
        let (copy, affine_kernel) = (context.kernel(TestKernel::Copy)?, context.kernel(TestKernel::Affine)?);
        let (x, y) = (context.upload_words(&stream, &[1, 2, 3])?, context.upload_words(&stream, &[0; 3])?);
        stream.launch(&copy, [1, 1, 1], &[x.clone().into(), y.clone().into(), number(3)])?;
        affine(&stream, &affine_kernel, &y, &x, (3, 10, 1))?;
        holds_words(&stream, &x, &[11, 21, 31], "the output")
    });
    tests.add("kernels-know-their-signature", "a kernel tells its device, name and arguments", |context| {
        let kernel = context.kernel(TestKernel::Affine)?;
        ensure!(kernel.device().is_same_opening(context.device().id()), "it is of {}", kernel.device());
        ensure_eq!(kernel.name(), "test_affine", "the name");
        ensure_eq!(kernel.signature().args, TestKernel::Affine.signature().args, "the arguments");
        Ok(())
    });
    tests.add("unknown-entry-is-refused", "a name that no kernel of the program has is refused", |context| {
        let source = match context.format()? {
            Format::Native => return Err(unsupported("native kernels have no names to look for")),
            format => match format.source(TestKernel::Copy) {
                KernelSource::Text { source, .. } => {
                    format.text(&source, "test_absent", TestKernel::Copy.signature())
                }
                KernelSource::Binary { bytes, .. } => {
                    binary(format.name(), bytes, "test_absent", TestKernel::Copy.signature())
                }
                _ => return Err(unsupported("programs of this format have no names")),
            },
        };
        ensure_kind!(
            context.device().load(&source),
            ErrorKind::InvalidArgument | ErrorKind::Unavailable | ErrorKind::Build { .. },
            "loading test_absent"
        );
        Ok(())
    });
    tests.add(
        "a-syntax-error-has-a-log",
        "text that does not compile is a build error with the compiler's log",
        |context| {
            let format = context.format()?;
            if !format.is_text() {
                return Err(unsupported(format!("{} is no text", format.name())));
            }
            let source = format.text("this is no kernel ;;; (", "broken", Signature::default());
            let error =
                ensure_kind!(context.device().load(&source), ErrorKind::Build { .. }, "loading nonsense");
            let ErrorKind::Build { log } = error.kind() else { unreachable!("the kind was compared") };
            ensure!(!log.trim().is_empty(), "the log is empty");
            // The failure is the kernel's, not the device's.
            context.kernel(TestKernel::Copy).map(drop)
        },
    );
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("empty", |_| Vec::new()),
        ("zeros", |_| vec![0; 256]),
        ("noise", |bytes| crate::Random::new(3).bytes(bytes.len())),
        ("cut", |mut bytes| {
            bytes.truncate(bytes.len() / 2);
            bytes
        }),
        ("a-byte-short", |mut bytes| {
            bytes.pop();
            bytes
        }),
    ];
    for (name, damage) in damages {
        tests.add(
            format!("refuses-a-program-that-is-{name}"),
            "bytes that are no program are of a bad format, and the device goes on",
            move |context| {
                let format = context.format()?;
                let Some(bytes) = format.bytes() else {
                    return Err(unsupported(format!("{} is not made of bytes", format.name())));
                };
                let source = binary(
                    format.name(),
                    damage(bytes.to_vec()).into(),
                    "test_copy",
                    TestKernel::Copy.signature(),
                );
                ensure_kind!(
                    context.device().load(&source),
                    ErrorKind::BadFormat | ErrorKind::Build { .. },
                    "loading the program"
                );
                context.kernel(TestKernel::Copy).map(drop)
            },
        );
    }
    tests.add(
        "refuses-another-signature",
        "a program that tells its arguments is compared with what it is loaded for",
        |context| {
            let format = context.format()?;
            let Some(bytes) = format.bytes() else {
                return Err(unsupported(format!("programs of {} tell no arguments", format.name())));
            };
            let buffer = ArgType::Buffer { dtype: DType::U32, access: Access::Read };
            let source = binary(format.name(), bytes, "test_copy", Signature::new(vec![buffer]));
            match context.device().load(&source) {
                Ok(_) => Err(unsupported("the device's programs tell no arguments")),
                Err(error) => {
                    ensure_kind!(
                        Err::<(), _>(error),
                        ErrorKind::BadFormat,
                        "one argument where three are taken"
                    );
                    Ok(())
                }
            }
        },
    );
    tests.add(
        "a-panic-is-a-fault",
        "a native kernel that panics fails its stream, and nothing else",
        |context| {
            if !context.info().accepts("native") {
                return Err(unsupported("the device takes no native kernels"));
            }
            let kernel = NativeKernel::new("test_panic", Signature::default(), |_| -> Result<(), String> {
                std::panic::resume_unwind(Box::new("on purpose"))
            });
            let kernel = context.device().load(&KernelSource::Native(kernel))?;
            let stream = context.stream()?;
            stream.launch(&kernel, [1, 1, 1], &[])?;
            ensure_kind!(stream.synchronize(), ErrorKind::Fault, "the synchronisation");
            stream.reset()?;
            Ok(stream.synchronize()?)
        },
    );
}

fn lifetimes(tests: &mut Tests) {
    tests.add("kernel-and-buffers-may-go", "a launch holds its kernel and its buffers", |context| {
        let stream = context.stream()?;
        let out = context.upload_words(&stream, &[0; 100])?;
        {
            let kernel = context.kernel(TestKernel::Copy)?;
            let input = context.upload_words(&stream, &words(100, 6))?;
            context.busy(&stream, std::time::Duration::from_millis(5))?;
            stream.launch(&kernel, [1, 1, 1], &[input.into(), out.clone().into(), number(100)])?;
        }
        holds_words(&stream, &out, &words(100, 6), "the output")
    });
    tests.add("loaded-and-unloaded", "a kernel may be loaded, used and dropped many times", |context| {
        let stream = context.stream()?;
        for round in 0..30usize {
            let kernel = context.kernel(TestKernel::Affine)?;
            let (input, out) =
                (context.upload_words(&stream, &[1, 2])?, context.upload_words(&stream, &[0; 2])?);
            affine(&stream, &kernel, &input, &out, (2, round, 1))?;
            drop(kernel);
            holds_words(&stream, &out, &[round as u32 + 1, 2 * round as u32 + 1], "the output")?;
        }
        Ok(())
    });
    tests.add("loaded-by-many-threads", "eight threads may load kernels at once", |context| {
        context.kernel(TestKernel::Copy)?;
        super::in_threads(8, |index| {
            let kernel = context.kernel(TestKernel::Copy)?;
            let stream = context.stream()?;
            let values = words(20, index as u32);
            let (input, out) =
                (context.upload_words(&stream, &values)?, context.upload_words(&stream, &[0; 20])?);
            stream.launch(&kernel, [1, 1, 1], &[input.into(), out.clone().into(), number(20)])?;
            holds_words(&stream, &out, &values, "the output")
        })
    });
    tests.add(
        "copies-see-launches",
        "copies and fills of a stream see what launches before them wrote",
        |context| {
            let (kernel, stream) = (context.kernel(TestKernel::Update)?, context.stream()?);
            let (x, y) = (context.upload_words(&stream, &[0; 16])?, context.upload_words(&stream, &[0; 16])?);
            for round in 0..100u32 {
                stream.fill(&x, &round.to_le_bytes())?;
                update(&stream, &kernel, &x, 16, 1)?;
                stream.copy(&y, &x)?;
                stream.fill(&x, &[0xff])?;
            }
            ensure_eq!(download(&stream, &y)?.len(), 64, "bytes");
            holds_words(&stream, &y, &[298; 16], "the copy")
        },
    );
}
