//! Honesty: what the device claims works, and what it does not claim answers `Unsupported` with a reason.

use super::Tests;
use crate::context::{Context, holds, holds_words};
use crate::outcome::{Outcome, failed, unsupported};
use crate::program::{Format, TestKernel, binary};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{Arg, DType, ErrorKind, KernelSource, MemoryKind, NativeKernel, Signature};

/// Formats of kernels that devices are known to take.
const FORMATS: [&str; 6] = ["native", "opencl-c", "cuda-c", "cubin", "npu-program", "builtin"];

pub(super) fn tests(tests: &mut Tests) {
    for format in FORMATS {
        tests.add(
            format!("format-{format}"),
            "a format that is claimed loads, and one that is not claimed is unsupported",
            move |context| check_format(context, format),
        );
    }
    tests.add(
        "unknown-formats-are-unsupported",
        "a format that nobody knows is unsupported, by name",
        |context| {
            let source = binary("no-such-format", [0u8; 64].as_slice().into(), "entry", Signature::default());
            let error = ensure_kind!(
                context.device().load(&source),
                ErrorKind::Unsupported,
                "loading no-such-format"
            );
            ensure!(
                error.message().contains("no-such-format"),
                "the message does not name the format: {error}"
            );
            Ok(())
        },
    );
    tests.add(
        "unknown-features-are-unsupported",
        "code that requires a feature which the device lacks is unsupported",
        |context| {
            let format = context.format()?;
            let lacking = vec!["no-such-feature".to_owned()];
            let source = match format.source(TestKernel::Copy) {
                KernelSource::Native(kernel) => {
                    KernelSource::Native(NativeKernel { requires: lacking, ..kernel })
                }
                KernelSource::Text { language, source, entry, options, workgroup, signature, .. } => {
                    KernelSource::Text {
                        language,
                        source,
                        entry,
                        options,
                        workgroup,
                        signature,
                        requires: lacking,
                    }
                }
                KernelSource::Binary { format, bytes, entry, workgroup, signature, .. } => {
                    KernelSource::Binary { format, bytes, entry, workgroup, signature, requires: lacking }
                }
                _ => return Err(unsupported("kernels of this format require nothing")),
            };
            let error =
                ensure_kind!(context.device().load(&source), ErrorKind::Unsupported, "loading the kernel");
            ensure!(
                error.message().contains("no-such-feature"),
                "the message does not name the feature: {error}"
            );
            Ok(())
        },
    );
    tests.add("claimed-features-load", "code that requires what the device has is loaded", |context| {
        let format = context.format()?;
        let features = context.info().features.clone();
        if features.is_empty() {
            return Err(unsupported("the device claims no features"));
        }
        let KernelSource::Native(kernel) = format.source(TestKernel::Copy) else {
            return context.kernel(TestKernel::Copy).map(drop);
        };
        context.device().load(&KernelSource::Native(NativeKernel { requires: features, ..kernel }))?;
        Ok(())
    });
    for (kind, name) in [(MemoryKind::HostVisible, "host-visible"), (MemoryKind::Pinned, "pinned")] {
        tests.add(
            format!("memory-kind-{name}"),
            "a kind of memory is there for every size, or for none",
            move |context| {
                let results = [0u64, 1, 4096, 100_000].map(|len| context.device().allocate(len, kind));
                if results.iter().all(Result::is_ok) {
                    return Ok(());
                }
                let mut reason = String::new();
                for result in results {
                    let error = ensure_kind!(
                        result,
                        ErrorKind::Unsupported,
                        "{kind:?} memory, which lacks for some sizes"
                    );
                    ensure!(!error.message().is_empty(), "{kind:?} memory is unsupported without a reason");
                    reason = error.message().to_owned();
                }
                Err(unsupported(reason))
            },
        );
    }
    for dtype in DType::ALL {
        tests.add(
            format!("claimed-{dtype}-is-copied"),
            "an element type that is claimed can be copied by a built-in, where there are any",
            move |context| claimed_type(context, dtype),
        );
    }
    tests.add(
        "unknown-built-ins-are-unsupported",
        "a built-in that the device lacks is unsupported, with a reason",
        |context| {
            if !context.info().accepts("builtin") {
                return Err(unsupported("the device takes no built-ins"));
            }
            // No library multiplies bools.
            let operands = vec![OperandDesc::contiguous(DType::Bool, &[2, 2]); 3];
            let source = KernelSource::Builtin(BuiltinOp::new(BuiltinKind::MatMul, operands)?);
            let error =
                ensure_kind!(context.device().load(&source), ErrorKind::Unsupported, "a product of bools");
            ensure!(!error.message().is_empty(), "it is unsupported without a reason");
            Ok(())
        },
    );
    tests.add("clock-answers-alike", "elapsed time is told for all events, or for none", |context| {
        let stream = context.stream()?;
        let mut answers = Vec::new();
        for value in 0..4u8 {
            let buffer = context.buffer(100)?;
            let first = stream.record()?;
            stream.fill(&buffer, &[value])?;
            let second = stream.record()?;
            stream.synchronize()?;
            match second.elapsed_since(&first) {
                Ok(_) => answers.push(true),
                Err(error) if *error.kind() == ErrorKind::Unsupported => answers.push(false),
                Err(error) => {
                    return Err(failed(format!("the answer is no time and not unsupported: {error}")));
                }
            }
        }
        ensure!(
            answers.windows(2).all(|pair| pair[0] == pair[1]),
            "some events have a time and others do not"
        );
        Ok(())
    });
    tests.add(
        "largest-allocation-is-meant",
        "half of the largest allocation is given, where there is room",
        |context| {
            // The whole may not be free; a half that is far below the free memory must be.
            let half = context.info().limits.max_allocation_bytes / 2;
            let free = context.device().memory()?.free_bytes;
            if half > free / 4 || half > context.fill_limit_bytes {
                let most = context.fill_limit_bytes.min(free / 4);
                return Err(crate::outcome::skipped(format!(
                    "half of the largest allocation is {half} bytes, and at most {most} are tried: a quarter of what is \
                     free, and no more than the suite fills"
                )));
            }
            let buffer = context.device().allocate(half, MemoryKind::Device)?;
            ensure_eq!(buffer.len_bytes(), half, "the length");
            Ok(())
        },
    );
    tests.add(
        "largest-grid-runs",
        "a grid at the limit of an axis is taken, where it is small enough to run",
        |context| {
            let kernel = context.kernel(TestKernel::Blocks)?;
            let groups = context.info().limits.max_grid[0];
            if groups > 100_000 {
                return Err(crate::outcome::skipped(format!("{groups} workgroups take long")));
            }
            let stream = context.stream()?;
            let out = context.upload_words(&stream, &vec![0; groups as usize])?;
            stream.launch(&kernel, [groups, 1, 1], &[out.clone().into(), super::launch::number(5)])?;
            let expected: Vec<u32> = (5..groups + 5).collect();
            holds_words(&stream, &out, &expected, "the output")
        },
    );
    tests.add(
        "description-of-programs-is-true",
        "a kernel that wants more arguments than the device takes is refused",
        |context| {
            let kernel = context.kernel(TestKernel::Copy)?;
            let stream = context.stream()?;
            let args: Vec<Arg> = vec![super::launch::number(0); context.info().limits.max_args as usize + 1];
            ensure_kind!(stream.launch(&kernel, [1, 1, 1], &args), ErrorKind::InvalidArgument, "the launch");
            Ok(())
        },
    );
}

fn check_format(context: &Context, format: &'static str) -> Outcome {
    let is_claimed = context.info().accepts(format);
    let known = [Format::Native, Format::OpenClC, Format::CudaC, Format::Npu];
    let source = match known.into_iter().find(|known| known.name() == format) {
        Some(known) => known.source(TestKernel::Copy),
        None if format == "builtin" => {
            let dtype = context.info().dtypes.first().copied().unwrap_or(DType::F32);
            let operands = vec![OperandDesc::contiguous(dtype, &[4]); 2];
            KernelSource::Builtin(BuiltinOp::new(BuiltinKind::Copy, operands)?)
        }
        None => binary(format, [0u8; 64].as_slice().into(), "entry", Signature::default()),
    };
    let loaded = context.device().load(&source);
    if !is_claimed {
        let error = ensure_kind!(loaded, ErrorKind::Unsupported, "loading {format}, which is not claimed");
        return Err(unsupported(error.message()));
    }
    match loaded {
        Ok(_) => Ok(()),
        // There is no program for it here, so nonsense was loaded.
        Err(error) if format == "cubin" && *error.kind() != ErrorKind::Unsupported => Ok(()),
        Err(error) => Err(failed(format!("{format} is claimed, and loading it fails: {error}"))),
    }
}

fn claimed_type(context: &Context, dtype: DType) -> Outcome {
    if !context.info().dtypes.contains(&dtype) {
        return Err(unsupported(format!("the device has no kernels for {dtype}")));
    }
    let operands = vec![OperandDesc::contiguous(dtype, &[5]); 2];
    let kernel = context.builtin(BuiltinOp::new(BuiltinKind::Copy, operands)?);
    if context.info().accepts("builtin") && kernel.is_err() {
        return kernel
            .map(drop)
            .map_err(|stop| failed(format!("{dtype} is claimed, and cannot be copied: {stop:?}")));
    }
    let (kernel, stream) = (kernel?, context.stream()?);
    let bytes = super::builtin::numbered(dtype, &[0, 1, 1, 0, 1]);
    let (input, out) = (context.upload(&stream, &bytes)?, context.upload(&stream, &vec![9; bytes.len()])?);
    context.run_builtin(&stream, &kernel, &[&input, &out])?;
    holds(&stream, &out, &bytes, "the output")
}
