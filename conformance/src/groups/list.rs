//! Command lists: replayed, they do what the same commands do directly, with what is bound to their slots.

use super::builtin::contiguous;
use super::launch::number;
use super::order::after;
use super::{Tests, in_threads};
use crate::context::{Context, holds, holds_words, same_bytes};
use crate::outcome::{Outcome, Stop};
use crate::program::TestKernel;
use crate::random::Random;
use halite_hal::builtin::BuiltinKind;
use halite_hal::{
    BufferSlice, CommandList, CommandListBuilder, DType, ErrorKind, Kernel, RecordedArg, RecordedCommand,
    RecordedRange, Result as HalResult, Scalar, Stream,
};
use std::time::Duration;

fn slot(slot: usize, offset: u64, len: u64) -> RecordedRange {
    RecordedRange::Slot { slot, offset, len }
}

fn fixed(slice: &BufferSlice) -> RecordedRange {
    RecordedRange::Fixed(slice.clone())
}

fn fill(dst: RecordedRange, pattern: &[u8]) -> RecordedCommand {
    RecordedCommand::Fill { dst, pattern: pattern.to_vec() }
}

fn copy(dst: RecordedRange, src: RecordedRange) -> RecordedCommand {
    RecordedCommand::Copy { dst, src }
}

pub(super) fn record(context: &Context, commands: Vec<RecordedCommand>) -> HalResult<CommandList> {
    let mut builder = CommandListBuilder::new();
    commands.into_iter().for_each(|command| builder.push(command));
    context.device().finish(builder)
}

pub(super) fn tests(tests: &mut Tests) {
    equal(tests);
    slots(tests);
    lifetimes(tests);
    refusals(tests);
}

fn equal(tests: &mut Tests) {
    tests.add("fills-and-copies", "a list of fills and copies does what they do directly", |context| {
        let stream = context.stream()?;
        let (a, b) = (context.upload(&stream, &[0; 64])?, context.upload(&stream, &[0; 64])?);
        let list = record(
            context,
            vec![
                fill(fixed(&a), &[1]),
                copy(fixed(&b.slice(3, 20)?), fixed(&a.slice(7, 20)?)),
                fill(fixed(&a.slice(8, 8)?), &[1, 2, 3, 4]),
                copy(fixed(&b.slice(40, 8)?), fixed(&a.slice(8, 8)?)),
            ],
        )?;
        stream.replay(&list, &[], &[])?;
        let mut expected = [0u8; 64];
        expected[3..23].fill(1);
        expected[40..48].copy_from_slice(&[1, 2, 3, 4, 1, 2, 3, 4]);
        holds(&stream, &b, &expected, "the target")
    });
    tests.add("launches", "a list of launches does what they do directly", |context| {
        let (kernel, stream) = (context.kernel(TestKernel::Update)?, context.stream()?);
        let x = context.upload_words(&stream, &[1, 2, 3, 4])?;
        let commands =
            (0..5).map(|round| recorded_update(&kernel, fixed(&x), RecordedArg::Scalar(Scalar::U32(round))));
        let list = record(context, commands.collect())?;
        stream.replay(&list, &[], &[])?;
        let mut expected = [1u32, 2, 3, 4];
        (0..5).for_each(|round| expected = expected.map(|x| x.wrapping_mul(3).wrapping_add(round)));
        holds_words(&stream, &x, &expected, "the buffer")
    });
    tests.add("between-direct-commands", "a replay takes its place among direct commands", |context| {
        let stream = context.stream()?;
        let (a, b) = (context.buffer(100)?, context.buffer(100)?);
        let list = record(context, vec![copy(fixed(&b), fixed(&a)), fill(fixed(&a), &[0])])?;
        for value in 0..50u8 {
            stream.fill(&a, &[value])?;
            stream.replay(&list, &[], &[])?;
            let read = stream.read(&b)?;
            stream.fill(&b, &[0xff])?;
            same_bytes(&read.wait()?, &[value; 100], "what the replay copied")?;
        }
        Ok(())
    });
    tests.add("a-thousand-commands", "a long list keeps its order", |context| {
        let stream = context.stream()?;
        let buffers = [context.upload(&stream, &[5; 128])?, context.upload(&stream, &[0; 128])?];
        let mut commands = Vec::new();
        for round in 0..500usize {
            let (from, to) = (&buffers[round % 2], &buffers[(round + 1) % 2]);
            commands.push(copy(fixed(to), fixed(from)));
            commands.push(fill(fixed(&to.slice(round as u64 % 128, 1)?), &[round as u8]));
        }
        let list = record(context, commands)?;
        stream.replay(&list, &[], &[])?;
        let mut expected = [5u8; 128];
        (0..500usize).for_each(|round| expected[round % 128] = round as u8);
        holds(&stream, &buffers[0], &expected, "the buffer")
    });
    tests.add("an-empty-list", "a list without commands does nothing", |context| {
        let stream = context.stream()?;
        let list = record(context, Vec::new())?;
        stream.replay(&list, &[], &[])?;
        Ok(stream.synchronize()?)
    });
    tests.add("of-no-bytes", "commands of no bytes are legal in a list", |context| {
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[1; 8])?;
        let empty = buffer.slice(8, 0)?;
        let list = record(context, vec![fill(fixed(&empty), &[9]), copy(fixed(&empty), slot(0, 0, 0))])?;
        stream.replay(&list, &[buffer.slice(4, 0)?], &[])?;
        holds(&stream, &buffer, &[1; 8], "the buffer")
    });
    tests.add("an-empty-grid", "a recorded launch over no workgroups does nothing", |context| {
        let (kernel, stream) = (context.kernel(TestKernel::Update)?, context.stream()?);
        let x = context.upload_words(&stream, &[1, 2, 3, 4])?;
        let mut update = recorded_update(&kernel, fixed(&x), RecordedArg::Scalar(Scalar::U32(9)));
        if let RecordedCommand::Launch { grid, .. } = &mut update {
            *grid = [0, 1, 1];
        }
        stream.replay(&record(context, vec![update])?, &[], &[])?;
        holds_words(&stream, &x, &[1, 2, 3, 4], "the buffer")
    });
    tests.add(
        "an-empty-grid-of-a-built-in",
        "a recorded built-in over no workgroups does nothing",
        |context| {
            let copy = contiguous(BuiltinKind::Copy, DType::F32, &[1])?;
            let (kernel, stream) = (context.builtin(copy)?, context.stream()?);
            let (input, out) = (context.upload(&stream, &[7; 4])?, context.upload(&stream, &[1; 4])?);
            let launch = RecordedCommand::Launch {
                kernel,
                grid: [0, 1, 1],
                args: [&input, &out].map(|slice| RecordedArg::Buffer(fixed(slice))).to_vec(),
            };
            stream.replay(&record(context, vec![launch])?, &[], &[])?;
            holds(&stream, &out, &[1; 4], "the target")
        },
    );
    for seed in 0..6u64 {
        tests.add(
            format!("random-{seed}-equals-direct"),
            "random commands give the same bytes directly and replayed",
            move |context| random_equals_direct(context, seed),
        );
    }
}

fn recorded_update(kernel: &Kernel, x: RecordedRange, b: RecordedArg) -> RecordedCommand {
    let n = RecordedArg::Scalar(Scalar::U32(4));
    RecordedCommand::Launch {
        kernel: kernel.clone(),
        grid: [1, 1, 1],
        args: vec![RecordedArg::Buffer(x), n, b],
    }
}

/// The same commands, once on one set of buffers directly, once on another as a list, several times over.
fn random_equals_direct(context: &Context, seed: u64) -> Outcome {
    const LEN: u64 = 512;
    let mut random = Random::named(context.seed.wrapping_add(seed), "lists");
    let stream = context.stream()?;
    let start = random.bytes(LEN as usize);
    let set = || (0..4).map(|_| context.upload(&stream, &start)).collect::<Result<Vec<_>, _>>();
    let (direct, replayed) = (set()?, set()?);
    let kernel = match context.kernel(TestKernel::Update) {
        Ok(kernel) => Some(kernel),
        Err(Stop::Unsupported(_) | Stop::Skipped(_)) => None,
        Err(failure) => return Err(failure),
    };
    let mut commands = Vec::new();
    let mut steps: Vec<Box<dyn Fn() -> HalResult<()> + '_>> = Vec::new();
    for _ in 0..60 {
        let (target, source) = (random.index(4), random.index(3));
        let source = (target + 1 + source) % 4;
        let (to, from) = (random.below(LEN / 2), random.below(LEN / 2));
        let len = random.below(LEN / 2);
        let (stream, direct) = (&stream, &direct);
        match random.below(3) {
            0 => {
                let pattern = random.bytes(1);
                commands.push(fill(slot(target, to, len), &pattern));
                steps.push(Box::new(move || stream.fill(&direct[target].slice(to, len)?, &pattern)));
            }
            1 => {
                commands.push(copy(slot(target, to, len), slot(source, from, len)));
                steps.push(Box::new(move || {
                    stream.copy(&direct[target].slice(to, len)?, &direct[source].slice(from, len)?)
                }));
            }
            _ => {
                let Some(kernel) = &kernel else { continue };
                let b = random.next_u64() as u32;
                let args = vec![
                    RecordedArg::Buffer(slot(target, 0, LEN)),
                    RecordedArg::Scalar(Scalar::U32(128)),
                    RecordedArg::Scalar(Scalar::U32(b)),
                ];
                commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 1, 1], args });
                steps.push(Box::new(move || {
                    let args = [direct[target].clone().into(), number(128), Scalar::U32(b).into()];
                    stream.launch(kernel, [1, 1, 1], &args)
                }));
            }
        }
    }
    let list = record(context, commands)?;
    let slots = list.buffer_slots().len();
    for round in 0..3 {
        steps.iter().try_for_each(|step| step())?;
        stream.replay(&list, &replayed[..slots], &[])?;
        for (place, (direct, replayed)) in direct.iter().zip(&replayed).enumerate() {
            let expected = crate::context::download(&stream, direct)?;
            holds(
                &stream,
                replayed,
                &expected,
                &format!("buffer {place} after round {round} (seed {seed})"),
            )?;
        }
    }
    Ok(())
}

fn slots(tests: &mut Tests) {
    tests.add("slots-take-other-buffers", "each replay works on what is bound to it", |context| {
        let stream = context.stream()?;
        let list = record(context, vec![fill(slot(0, 2, 4), &[7]), copy(slot(1, 0, 6), slot(0, 0, 6))])?;
        ensure_eq!(list.buffer_slots(), [6, 6], "the bytes that the slots need");
        for value in 0..10u8 {
            let (a, b) = (context.upload(&stream, &[value; 8])?, context.upload(&stream, &[0; 8])?);
            stream.replay(&list, &[a.clone(), b.clone()], &[])?;
            holds(&stream, &a, &[value, value, 7, 7, 7, 7, value, value], "the first binding")?;
            holds(&stream, &b, &[value, value, 7, 7, 7, 7, 0, 0], "the second binding")?;
        }
        Ok(())
    });
    tests.add("slots-take-slices", "a binding may lie inside of a buffer", |context| {
        let stream = context.stream()?;
        let list = record(context, vec![fill(slot(0, 4, 4), &[1, 2, 3, 4])])?;
        let buffer = context.upload(&stream, &[0; 64])?;
        for at in [0u64, 16, 52] {
            stream.replay(&list, &[buffer.slice(at, 12)?], &[])?;
        }
        let mut expected = [0u8; 64];
        [4usize, 20, 56].into_iter().for_each(|at| expected[at..at + 4].copy_from_slice(&[1, 2, 3, 4]));
        holds(&stream, &buffer, &expected, "the buffer")
    });
    tests.add("slots-take-numbers", "each replay passes the numbers that are bound to it", |context| {
        let (kernel, stream) = (context.kernel(TestKernel::Update)?, context.stream()?);
        let list =
            record(context, vec![recorded_update(&kernel, slot(0, 0, 16), RecordedArg::ScalarSlot(0))])?;
        ensure_eq!(list.scalar_slots(), 1, "slots for numbers");
        let x = context.upload_words(&stream, &[1, 2, 3, 4])?;
        let mut expected = [1u32, 2, 3, 4];
        for b in [0u32, 7, u32::MAX, 12] {
            stream.replay(&list, std::slice::from_ref(&x), &[Scalar::U32(b)])?;
            expected = expected.map(|x| x.wrapping_mul(3).wrapping_add(b));
        }
        holds_words(&stream, &x, &expected, "the buffer")
    });
    tests.add("slots-and-fixed-memory-mix", "a list may use both", |context| {
        let stream = context.stream()?;
        let own = context.upload(&stream, &[3; 16])?;
        let list = record(context, vec![copy(slot(0, 0, 16), fixed(&own)), fill(fixed(&own), &[4])])?;
        let first = context.upload(&stream, &[0; 16])?;
        let second = context.upload(&stream, &[0; 16])?;
        stream.replay(&list, std::slice::from_ref(&first), &[])?;
        stream.replay(&list, std::slice::from_ref(&second), &[])?;
        holds(&stream, &first, &[3; 16], "the first replay's target")?;
        holds(&stream, &second, &[4; 16], "the second replay's target")
    });
}

fn lifetimes(tests: &mut Tests) {
    tests.add("replayed-a-hundred-times", "a list may be replayed again and again", |context| {
        let stream = context.stream()?;
        let (a, b) = (context.upload(&stream, &[1; 999])?, context.upload(&stream, &[2; 999])?);
        let c = context.buffer(999)?;
        let swap = vec![copy(fixed(&c), fixed(&a)), copy(fixed(&a), fixed(&b)), copy(fixed(&b), fixed(&c))];
        let list = record(context, swap)?;
        for _ in 0..101 {
            stream.replay(&list, &[], &[])?;
        }
        holds(&stream, &a, &[2; 999], "the first buffer")?;
        holds(&stream, &b, &[1; 999], "the second buffer")
    });
    tests.add("list-and-bindings-may-go", "a replay holds its list and its bindings", |context| {
        let stream = context.stream()?;
        let out = context.upload(&stream, &[0; 5000])?;
        {
            let source = context.upload(&stream, &[6; 5000])?;
            let list = record(context, vec![copy(fixed(&out), slot(0, 0, 5000))])?;
            context.busy(&stream, Duration::from_millis(5))?;
            stream.replay(&list, &[source], &[])?;
        }
        holds(&stream, &out, &[6; 5000], "the target")
    });
    tests.add("on-several-streams", "a list may be replayed on every stream of its device", |context| {
        let streams: [Stream; 4] = context.streams()?;
        let list =
            record(context, vec![fill(slot(0, 0, 300), &[1]), copy(slot(1, 0, 300), slot(0, 0, 300))])?;
        let mut previous: Option<(Stream, BufferSlice)> = None;
        for stream in &streams {
            let (a, b) = (context.upload(stream, &[0; 300])?, context.upload(stream, &[0; 300])?);
            if let Some((before, _)) = &previous {
                after(stream, before)?;
            }
            stream.replay(&list, &[a, b.clone()], &[])?;
            previous = Some((stream.clone(), b));
        }
        let Some((stream, b)) = previous else { return Ok(()) };
        holds(&stream, &b, &[1; 300], "the last target")
    });
    tests.add("by-many-threads", "many threads may replay one list at once", |context| {
        let list = record(context, vec![fill(slot(0, 0, 64), &[3]), copy(slot(1, 0, 64), slot(0, 0, 64))])?;
        in_threads(8, |_| {
            let stream = context.stream()?;
            for _ in 0..25 {
                let (a, b) = (context.upload(&stream, &[0; 64])?, context.upload(&stream, &[0; 64])?);
                stream.replay(&list, &[a, b.clone()], &[])?;
                holds(&stream, &b, &[3; 64], "the target")?;
            }
            Ok(())
        })
    });
}

fn refusals(tests: &mut Tests) {
    tests.add(
        "refuses-wrong-bindings",
        "bindings that do not fit the slots are refused, and nothing runs",
        |context| {
            let stream = context.stream()?;
            let list = record(context, vec![fill(slot(0, 0, 8), &[9]), copy(slot(1, 0, 8), slot(0, 0, 8))])?;
            let buffer = context.upload(&stream, &[1; 32])?;
            let part = |at: u64, len: u64| buffer.slice(at, len);
            let cases: [(&str, Vec<BufferSlice>, Vec<Scalar>); 5] = [
                ("no bindings", vec![], vec![]),
                ("a binding too few", vec![part(0, 8)?], vec![]),
                ("a binding too many", vec![part(0, 8)?, part(8, 8)?, part(16, 8)?], vec![]),
                ("a number too many", vec![part(0, 8)?, part(8, 8)?], vec![Scalar::U32(1)]),
                ("a binding that is short", vec![part(0, 8)?, part(8, 7)?], vec![]),
            ];
            for (what, buffers, scalars) in cases {
                ensure_kind!(stream.replay(&list, &buffers, &scalars), ErrorKind::InvalidArgument, "{what}");
            }
            let overlapping = [part(0, 8)?, part(4, 8)?];
            ensure_kind!(
                stream.replay(&list, &overlapping, &[]),
                ErrorKind::InvalidArgument,
                "bindings that overlap"
            );
            holds(&stream, &buffer, &[1; 32], "the buffer")
        },
    );
    tests.add(
        "refuses-wrong-commands",
        "commands that could not run are refused when the list is finished",
        |context| {
            let stream = context.stream()?;
            let buffer = context.upload(&stream, &[1; 32])?;
            let cases = [
                ("a pattern of 3", fill(fixed(&buffer), &[1, 2, 3])),
                ("a pattern that does not divide", fill(fixed(&buffer.slice(0, 6)?), &[1, 2, 3, 4])),
                ("other lengths", copy(fixed(&buffer.slice(0, 8)?), fixed(&buffer.slice(16, 9)?))),
                ("an overlap", copy(fixed(&buffer.slice(0, 8)?), fixed(&buffer.slice(4, 8)?))),
                ("an overlap within a slot", copy(slot(0, 0, 8), slot(0, 4, 8))),
                ("a slot beyond reason", fill(slot(1 << 20, 0, 1), &[1])),
                ("a range beyond 64 bits", fill(slot(0, u64::MAX, 1), &[1])),
            ];
            for (what, command) in cases {
                ensure_kind!(record(context, vec![command]), ErrorKind::InvalidArgument, "{what}");
            }
            holds(&stream, &buffer, &[1; 32], "the buffer")
        },
    );
    tests.add("refuses-wrong-numbers", "a number of another type is refused at replay", |context| {
        let (kernel, stream) = (context.kernel(TestKernel::Update)?, context.stream()?);
        let list =
            record(context, vec![recorded_update(&kernel, slot(0, 0, 16), RecordedArg::ScalarSlot(0))])?;
        let x = context.upload_words(&stream, &[1; 4])?;
        let replay = stream.replay(&list, std::slice::from_ref(&x), &[Scalar::F32(1.0)]);
        ensure_kind!(replay, ErrorKind::InvalidArgument, "a float for a u32");
        holds_words(&stream, &x, &[1; 4], "the buffer")
    });
}
