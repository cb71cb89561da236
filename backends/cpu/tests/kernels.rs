//! What launches see: grids, arguments, scratch memory, command lists and built-ins.

mod common;

use common::*;
use half::{bf16, f16};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Access, ArgType, CommandListBuilder, DType, ErrorKind, KernelSource, NativeKernel, RecordedArg,
    RecordedCommand, RecordedRange, Scalar, Signature, as_bytes, from_bytes,
};
use std::sync::{Arc, Mutex};

#[test]
fn every_workgroup_of_a_grid_runs_once() {
    for threads in [1, 2, 3] {
        let stream = stream(threads);
        for grid in [[1, 1, 1], [2, 1, 1], [1, 3, 1], [1, 1, 2], [7, 5, 3], [1009, 1, 1], [64, 65, 2]] {
            let count = grid.iter().product::<u32>() as usize;
            let buffer = allocate(stream.device(), count);
            let kernel = native(stream.device(), vec![buffer_arg(Access::ReadWrite)], move |workgroup| {
                assert_eq!(workgroup.count(), grid);
                let [x, y, z] = workgroup.index();
                assert_eq!(workgroup.linear_index(), u64::from(x + grid[0] * (y + grid[1] * z)));
                workgroup.write_chunk::<u32>(0, 1)?[0] += 1;
                Ok(())
            });
            stream.launch(&kernel, grid, &[arg(&buffer)]).unwrap();
            assert_eq!(read(&stream, &buffer), vec![1; count], "{grid:?} on {threads} threads");
        }
    }
}

#[test]
fn a_grid_with_a_zero_does_nothing() {
    let stream = stream(2);
    let kernel = failing(stream.device(), "ran");
    for grid in [[0, 1, 1], [1, 0, 1], [5, 5, 0]] {
        stream.launch(&kernel, grid, &[]).unwrap();
    }
    stream.synchronize().unwrap();
}

#[test]
fn several_threads_share_a_launch() {
    let stream = stream(2);
    let threads = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let seen = threads.clone();
    let kernel = native(stream.device(), vec![], move |_| {
        seen.lock().unwrap().insert(std::thread::current().id());
        std::thread::sleep(std::time::Duration::from_millis(2));
        Ok(())
    });
    stream.launch(&kernel, [32, 1, 1], &[]).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(threads.lock().unwrap().len(), 2);
}

#[test]
fn empty_buffers_are_empty_slices() {
    let stream = stream(2);
    let empty = allocate(stream.device(), 0);
    let kernel = native(
        stream.device(),
        vec![buffer_arg(Access::Read), buffer_arg(Access::Write)],
        |workgroup| match (workgroup.read::<u32>(0)?, workgroup.write_chunk::<u32>(1, 4)?) {
            ([], []) => Ok(()),
            _ => Err("not empty".into()),
        },
    );
    stream.launch(&kernel, [3, 1, 1], &[arg(&empty), arg(&empty)]).unwrap();
    stream.write(&empty.all(), vec![]).unwrap();
    stream.copy(&empty.all(), &allocate(stream.device(), 0).all()).unwrap();
    stream.fill(&empty.all(), &[1, 2]).unwrap();
    stream.read_blocking(&empty.all(), &mut []).unwrap();
    assert!(stream.read(&empty.all()).unwrap().wait().unwrap().is_empty());
}

#[test]
fn in_place_kernels_may_write_what_they_read() {
    let stream = stream(2);
    let mut signature = Signature::new(vec![buffer_arg(Access::Read), buffer_arg(Access::Write)]);
    let run = |workgroup: &mut halite_hal::Workgroup<'_>| {
        assert!(workgroup.read::<u32>(0).is_err());
        let ((from, len), (to, _)) = (workgroup.pointer::<u32>(0)?, workgroup.pointer::<u32>(1)?);
        let per = len.div_ceil(workgroup.count()[0] as usize);
        let begin = per * workgroup.linear_index() as usize;
        for index in begin..(begin + per).min(len) {
            // SAFETY: in bounds of both, and each element is of one workgroup.
            unsafe { to.add(index).write(from.add(index).read() * 2) };
        }
        Ok(())
    };
    let buffer = allocate(stream.device(), 103);
    write(&stream, &buffer, &(0..103).collect::<Vec<_>>());
    for (in_place, accepted) in [(false, false), (true, true)] {
        signature.in_place = in_place;
        let kernel = NativeKernel::new("double", signature.clone(), run);
        let kernel = stream.device().load(&KernelSource::Native(kernel)).unwrap();
        assert_eq!(stream.launch(&kernel, [4, 1, 1], &[arg(&buffer), arg(&buffer)]).is_ok(), accepted);
    }
    assert_eq!(read(&stream, &buffer), (0..103).map(|value| value * 2).collect::<Vec<_>>());
}

#[test]
fn scratch_memory_is_aligned_private_and_of_the_asked_size() {
    let stream = stream(3);
    for len in [1, 100, 4096, 1 << 20, 64] {
        let mut kernel = NativeKernel::new("scratch", Signature::default(), move |workgroup| {
            let own = workgroup.linear_index() as u8;
            let scratch = workgroup.take_scratch();
            if scratch.len() != len || scratch.as_ptr().align_offset(64) != 0 {
                return Err(format!("{} bytes at {:p}", scratch.len(), scratch));
            }
            scratch.fill(own);
            std::thread::yield_now();
            if scratch.iter().any(|byte| *byte != own) { Err("shared".into()) } else { Ok(()) }
        });
        kernel.scratch_bytes = len;
        let kernel = stream.device().load(&KernelSource::Native(kernel)).unwrap();
        stream.launch(&kernel, [200, 1, 1], &[]).unwrap();
        stream.synchronize().unwrap();
    }
}

#[test]
fn scratch_memory_that_the_system_refuses_fails_the_launch_alone() {
    let stream = stream(2);
    let mut kernel = NativeKernel::new("greedy", Signature::default(), |_| Ok(()));
    kernel.scratch_bytes = 1 << 62;
    let kernel = stream.device().load(&KernelSource::Native(kernel)).unwrap();
    stream.launch(&kernel, [2, 1, 1], &[]).unwrap();
    assert!(matches!(stream.synchronize().unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
    stream.reset().unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_failed_workgroup_cancels_those_that_have_not_begun() {
    let stream = stream(2);
    let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counter = count.clone();
    let kernel = native(stream.device(), vec![], move |workgroup| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if workgroup.linear_index() == 0 { Err("stop".into()) } else { Ok(()) }
    });
    stream.launch(&kernel, [u32::MAX, 65_535, 65_535], &[]).unwrap();
    assert_eq!(stream.synchronize().unwrap_err().kind(), &ErrorKind::Fault);
    // Nothing close to the 2^64 of the grid: shares that others had taken by then are run to their end.
    assert!(count.load(std::sync::atomic::Ordering::Relaxed) < u32::MAX / 2);
}

#[test]
fn other_formats_and_missing_features_are_unsupported() {
    let device = device(1);
    let mut kernel = NativeKernel::new("wide", Signature::default(), |_| Ok(()));
    kernel.requires = vec!["avx4096".into()];
    assert_eq!(device.load(&KernelSource::Native(kernel)).unwrap_err().kind(), &ErrorKind::Unsupported);
    let text = KernelSource::Text {
        language: "opencl-c",
        source: "".into(),
        entry: "main".into(),
        options: String::new(),
        workgroup: [1, 1, 1],
        signature: Signature::default(),
        requires: vec![],
    };
    assert_eq!(device.load(&text).unwrap_err().kind(), &ErrorKind::Unsupported);
    assert_eq!(device.driver().load(&text).unwrap_err().kind(), &ErrorKind::Unsupported);
}

#[test]
fn replays_bind_buffers_and_scalars_anew_and_hold_them() {
    let stream = stream(2);
    let device = stream.device().clone();
    let add =
        native(&device, vec![buffer_arg(Access::ReadWrite), ArgType::Scalar(DType::U32)], |workgroup| {
            let amount = workgroup.scalar(1)?.to_bits() as u32;
            workgroup.write_chunk::<u32>(0, 100)?.iter_mut().for_each(|value| *value += amount);
            Ok(())
        });
    let constant = allocate(&device, 100);
    write(&stream, &constant, &[1000; 100]);
    let slot = |offset, len| RecordedRange::Slot { slot: 0, offset, len };
    let mut builder = CommandListBuilder::new();
    builder.push(RecordedCommand::Copy { dst: slot(0, 400), src: RecordedRange::Fixed(constant.all()) });
    builder.push(RecordedCommand::Fill { dst: slot(400, 400), pattern: 7u32.to_ne_bytes().to_vec() });
    for amount in [RecordedArg::ScalarSlot(0), RecordedArg::Scalar(Scalar::U32(5))] {
        builder.push(RecordedCommand::Launch {
            kernel: add.clone(),
            grid: [2, 1, 1],
            args: vec![RecordedArg::Buffer(slot(0, 800)), amount],
        });
    }
    builder.push(RecordedCommand::Launch {
        kernel: add,
        grid: [0, 1, 1],
        args: vec![RecordedArg::Buffer(slot(0, 0)), RecordedArg::ScalarSlot(0)],
    });
    let list = device.finish(builder).unwrap();
    drop(constant);
    let pending: Vec<_> = (0..20)
        .map(|round| {
            let buffer = allocate(&device, 203);
            let binding = buffer.slice(4, 808).unwrap();
            stream.replay(&list, &[binding], &[Scalar::U32(round)]).unwrap();
            stream.read(&buffer.all()).unwrap()
        })
        .collect();
    drop(list);
    for (round, pending) in (0..).zip(pending) {
        let values = from_bytes::<u32>(&pending.wait().unwrap());
        let expected = [vec![0], vec![1005 + round; 100], vec![12 + round; 100], vec![0; 2]].concat();
        assert_eq!(values, expected);
    }
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn a_failure_inside_of_a_replay_skips_its_rest_and_poisons() {
    let stream = stream(2);
    let device = stream.device().clone();
    let buffer = allocate(&device, 1);
    let mut builder = CommandListBuilder::new();
    let fill =
        |value| RecordedCommand::Fill { dst: RecordedRange::Fixed(buffer.all()), pattern: vec![value] };
    builder.push(fill(1));
    builder.push(RecordedCommand::Launch {
        kernel: failing(&device, "inside"),
        grid: [1, 1, 1],
        args: vec![],
    });
    builder.push(fill(2));
    let list = device.finish(builder).unwrap();
    stream.replay(&list, &[], &[]).unwrap();
    assert!(stream.synchronize().unwrap_err().message().contains("inside"));
    assert!(stream.replay(&list, &[], &[]).is_err());
    stream.reset().unwrap();
    assert_eq!(read(&stream, &buffer), [0x0101_0101]);
}

/// Runs `op` over inputs given as bytes and gives the output's bytes, which held 0xee before.
fn run_builtin(op: &BuiltinOp, inputs: &[&[u8]], out_bytes: u64) -> halite_hal::Result<Vec<u8>> {
    let stream = stream(2);
    let device = stream.device();
    let kernel = device.load(&KernelSource::Builtin(op.clone()))?;
    assert_eq!(kernel.workspace_bytes(), 0);
    let mut args = Vec::new();
    for input in inputs {
        let buffer = device.allocate(input.len() as u64, halite_hal::MemoryKind::Device)?;
        stream.write(&buffer.all(), *input)?;
        args.push(arg(&buffer));
    }
    let out = device.allocate(out_bytes, halite_hal::MemoryKind::Device)?;
    stream.fill(&out.all(), &[0xee])?;
    args.push(arg(&out));
    stream.launch(&kernel, [1, 1, 1], &args)?;
    stream.read(&out.all())?.wait()
}

fn desc(dtype: DType, shape: &[u64], strides: &[i64]) -> OperandDesc {
    OperandDesc { dtype, shape: shape.to_vec(), strides: strides.to_vec() }
}

#[test]
fn builtin_add_wraps_integers_and_rounds_floats_once() {
    fn check<T: halite_hal::Element>(lhs: &[T], rhs: &[T], expected: &[T]) {
        let operand = OperandDesc::contiguous(T::DTYPE, &[lhs.len() as u64]);
        let op = BuiltinOp::new(BuiltinKind::Add, vec![operand; 3]).unwrap();
        let bytes = size_of_val(lhs) as u64;
        let out = run_builtin(&op, &[as_bytes(lhs), as_bytes(rhs)], bytes).unwrap();
        assert_eq!(out, as_bytes(expected), "{}", T::DTYPE);
    }
    check::<i8>(&[127, -128, 1], &[1, -1, 2], &[-128, 127, 3]);
    check::<u8>(&[255, 1], &[1, 1], &[0, 2]);
    check::<i16>(&[i16::MAX], &[1], &[i16::MIN]);
    check::<u16>(&[u16::MAX], &[2], &[1]);
    check::<i32>(&[i32::MAX], &[1], &[i32::MIN]);
    check::<u32>(&[u32::MAX], &[2], &[1]);
    check::<i64>(&[i64::MIN], &[-1], &[i64::MAX]);
    check::<u64>(&[u64::MAX], &[2], &[1]);
    check::<f32>(&[1.0, f32::INFINITY, -0.0], &[f32::EPSILON / 4.0, 1.0, -0.0], &[1.0, f32::INFINITY, -0.0]);
    check::<f64>(&[0.1], &[0.2], &[0.1 + 0.2]);
    // 2049 lies between two binary16 numbers; the tie goes to the even one.
    check::<f16>(&[f16::from_f32(2048.0)], &[f16::ONE], &[f16::from_f32(2048.0)]);
    check::<bf16>(&[bf16::from_f32(256.0)], &[bf16::ONE], &[bf16::from_f32(256.0)]);
}

#[test]
fn builtin_add_of_nan_is_nan() {
    let operand = OperandDesc::contiguous(DType::F32, &[2]);
    let op = BuiltinOp::new(BuiltinKind::Add, vec![operand; 3]).unwrap();
    let inputs = [[f32::NAN, f32::INFINITY], [1.0, f32::NEG_INFINITY]];
    let out = run_builtin(&op, &[as_bytes(&inputs[0]), as_bytes(&inputs[1])], 8).unwrap();
    assert!(from_bytes::<f32>(&out).iter().all(|value| value.is_nan()));
}

#[test]
fn builtin_copy_follows_strides_and_leaves_gaps_alone() {
    let input: Vec<u16> = (0..6).collect();
    // A transposed input, and an output with a gap of one element after each row of two.
    let op = BuiltinOp::new(
        BuiltinKind::Copy,
        vec![desc(DType::U16, &[3, 2], &[1, 3]), desc(DType::U16, &[3, 2], &[3, 1])],
    )
    .unwrap();
    let out = from_bytes::<u16>(&run_builtin(&op, &[as_bytes(&input)], 18).unwrap());
    assert_eq!(out, [0, 3, 0xeeee, 1, 4, 0xeeee, 2, 5, 0xeeee]);
}

#[test]
fn builtin_copy_repeats_where_the_stride_is_zero_and_spans_many_workgroups() {
    let op = BuiltinOp::new(
        BuiltinKind::Copy,
        vec![desc(DType::U8, &[100_003, 2], &[0, 1]), OperandDesc::contiguous(DType::U8, &[100_003, 2])],
    )
    .unwrap();
    let out = run_builtin(&op, &[&[3, 4]], 200_006).unwrap();
    assert!(out.chunks(2).all(|pair| pair == [3, 4]));
}

#[test]
fn builtin_fill_writes_the_elements_bits_for_every_size() {
    for dtype in DType::ALL {
        let op = BuiltinOp::new(
            BuiltinKind::Fill { value_bits: 0x0102_0304_0506_0701 },
            vec![OperandDesc::contiguous(dtype, &[5])],
        )
        .unwrap();
        let out = run_builtin(&op, &[], 5 * dtype.size() as u64).unwrap();
        let element = &0x0102_0304_0506_0701u64.to_le_bytes()[..dtype.size()];
        assert_eq!(out, element.repeat(5), "{dtype}");
    }
}

#[test]
fn builtins_without_elements_do_nothing_and_short_buffers_are_refused() {
    let op =
        |n| BuiltinOp::new(BuiltinKind::Add, vec![OperandDesc::contiguous(DType::F32, &[n]); 3]).unwrap();
    assert_eq!(run_builtin(&op(0), &[&[], &[]], 4).unwrap(), [0xee; 4]);
    let error = run_builtin(&op(2), &[&[0; 8], &[0; 4]], 8).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    let scalar =
        BuiltinOp::new(BuiltinKind::Fill { value_bits: 5 }, vec![OperandDesc::contiguous(DType::U8, &[])]);
    assert_eq!(run_builtin(&scalar.unwrap(), &[], 2).unwrap(), [5, 0xee]);
}
