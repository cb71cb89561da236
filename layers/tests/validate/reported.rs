//! What is suspicious: it is reported and done, or refused where the layer is strict.

use super::*;
use halite_hal::{CommandListBuilder, ErrorKind, RecordedCommand, RecordedRange};

#[test]
fn a_kernel_that_reads_what_nothing_wrote() {
    let bench = Bench::cpu();
    let (input, out) = (bench.buffer(100), bench.buffer(100));
    bench.streams[0].fill(&input.slice(0, 60).unwrap(), &[1]).unwrap();
    bench.streams[0].launch(&bench.increment(), [1, 1, 1], &[arg(&input), arg(&out)]).unwrap();
    let finding = bench.found(
        FindingKind::UnwrittenRead,
        &[
            "argument 0 of the launch of 'increment' on stream 1",
            "bytes 60 to 99",
            "100 bytes",
            "fill them first",
        ],
    );
    let line = |text: &str| text.contains("main.rs") || text.contains("reported.rs");
    assert!(line(&finding.place) && line(finding.origin.as_ref().unwrap()), "{finding}");
    // What it wrote counts as written all the same: one mistake, one finding.
    bench.streams[0].read_blocking(&out.all(), &mut [0; 100]).unwrap();
    bench.nothing_found();
}

#[test]
fn an_update_of_what_nothing_wrote() {
    let bench = Bench::cpu();
    let buffer = bench.buffer(7);
    bench.streams[0].launch(&bench.increment_in_place(), [1, 1, 1], &[arg(&buffer)]).unwrap();
    bench.found(FindingKind::UnwrittenRead, &["increment_in_place", "bytes 0 to 6"]);
}

#[test]
fn a_host_read_of_what_nothing_wrote() {
    let bench = Bench::cpu();
    let buffer = bench.buffer(16);
    bench.streams[0].fill(&buffer.slice(4, 4).unwrap(), &[1]).unwrap();
    bench.streams[0].read_blocking(&buffer.slice(4, 4).unwrap(), &mut [0; 4]).unwrap();
    bench.nothing_found();
    bench.streams[0].read_blocking(&buffer.all(), &mut [0; 16]).unwrap();
    bench.found(FindingKind::UnwrittenRead, &["the read by the host", "bytes 0 to 3"]);
    let pending = bench.streams[0].read(&buffer.slice(8, 8).unwrap()).unwrap();
    pending.wait().unwrap();
    bench.found(FindingKind::UnwrittenRead, &["the read by the host", "bytes 8 to 15"]);
}

#[test]
fn copies_pass_on_what_was_not_written() {
    let bench = Bench::cpu();
    let (a, b) = (bench.buffer(32), bench.written(32));
    bench.streams[0].fill(&a.slice(8, 8).unwrap(), &[1]).unwrap();
    bench.streams[0].copy(&b.slice(0, 24).unwrap(), &a.slice(4, 24).unwrap()).unwrap();
    bench.nothing_found();
    let read = |range: std::ops::Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let slice = b.slice(range.start, range.end - range.start).unwrap();
        bench.streams[0].read_blocking(&slice, &mut bytes).unwrap();
    };
    read(4..12);
    read(24..32);
    bench.nothing_found();
    read(0..32);
    bench.found(FindingKind::UnwrittenRead, &["bytes 0 to 3"]);
}

#[test]
fn a_write_beside_a_read_of_another_stream() {
    let bench = Bench::cpu();
    let (a, b) = (bench.written(64), bench.written(64));
    let [first, second] = &bench.streams;
    first.launch(&bench.increment(), [1, 1, 1], &[arg(&a), arg(&b)]).unwrap();
    second.fill(&a.slice(16, 16).unwrap(), &[3]).unwrap();
    bench.found(
        FindingKind::Race,
        &[
            "the fill on stream 2 writes bytes 16 to 31",
            "argument 0 of the launch of 'increment' on stream 1 read",
            "record an event on stream 1 behind that and let stream 2 wait for it",
        ],
    );
}

#[test]
fn a_read_beside_a_write_of_another_stream() {
    let bench = Bench::cpu();
    let buffer = bench.written(64);
    let [first, second] = &bench.streams;
    first.write(&buffer.all(), vec![1; 64]).unwrap();
    second.read_blocking(&buffer.all(), &mut [0; 64]).unwrap();
    bench.found(
        FindingKind::Race,
        &["the read by the host on stream 2 reads", "the write from the host on stream 1 wrote"],
    );
}

#[test]
fn two_writes_of_streams_that_do_not_wait_for_each_other() {
    let bench = Bench::cpu();
    let buffer = bench.written(64);
    let [first, second] = &bench.streams;
    first.fill(&buffer.slice(0, 33).unwrap(), &[1]).unwrap();
    // The event is recorded before the work that it should stand for.
    let event = second.record().unwrap();
    second.fill(&buffer.slice(33, 31).unwrap(), &[2]).unwrap();
    bench.nothing_found();
    first.wait(&event).unwrap();
    first.fill(&buffer.slice(32, 2).unwrap(), &[3]).unwrap();
    bench.found(
        FindingKind::Race,
        &["the fill on stream 1 writes bytes 33 to 33", "the fill on stream 2 wrote"],
    );
}

#[test]
fn a_race_inside_of_a_replay_names_the_command() {
    let bench = Bench::cpu();
    let (a, b) = (bench.written(64), bench.written(64));
    let fixed = |buffer: &Buffer| RecordedRange::Fixed(buffer.all());
    let mut commands = CommandListBuilder::new();
    commands.push(RecordedCommand::Fill { dst: fixed(&b), pattern: vec![1] });
    commands.push(RecordedCommand::Copy { dst: fixed(&b), src: fixed(&a) });
    let list = bench.device.finish(commands).unwrap();
    bench.streams[0].fill(&a.all(), &[1]).unwrap();
    bench.streams[1].replay(&list, &[], &[]).unwrap();
    let parts = ["the copy out of it on stream 2", "command 1 of CommandList#", "the fill on stream 1 wrote"];
    bench.found(FindingKind::Race, &parts);
}

#[test]
fn a_time_out_teaches_the_host_nothing() {
    let bench = Bench::cpu();
    let buffer = bench.written(8);
    let gate = bench.close_gate(&bench.streams[0]);
    bench.streams[0].fill(&buffer.all(), &[1]).unwrap();
    let event = bench.streams[0].record().unwrap();
    assert!(!event.is_done().unwrap());
    let error = event.wait(Some(std::time::Duration::from_millis(1))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }));
    let error = bench.streams[0].synchronize_timeout(std::time::Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }));
    bench.streams[1].fill(&buffer.all(), &[2]).unwrap();
    gate.open();
    bench.found(FindingKind::Race, &["the fill on stream 2 writes bytes 0 to 7"]);
}

#[test]
fn host_memory_that_changes_before_the_copy_is_over() {
    let bench = Bench::cpu();
    let source = bench.device.allocate(100, MemoryKind::HostVisible).unwrap();
    let target = bench.written(100);
    let first = source.host_pointer().unwrap();
    let gate = bench.close_gate(&bench.streams[0]);
    bench.streams[0].copy(&target.all(), &source.all()).unwrap();
    // SAFETY: inside of the buffer; the copy waits behind the gate, so nothing else touches the byte now.
    unsafe { first.add(99).write(7) };
    gate.open();
    bench.streams[0].synchronize().unwrap();
    let parts =
        ["bytes 0 to 99 changed", "the copy out of it was under way", "wait for an event behind that work"];
    bench.found(FindingKind::HostMemoryChanged, &parts);
}

#[test]
fn host_memory_may_change_when_the_copy_is_over_and_by_the_device_itself() {
    let bench = Bench::cpu();
    let source = bench.device.allocate(100, MemoryKind::Pinned).unwrap();
    let target = bench.buffer(100);
    let first = source.host_pointer().unwrap();
    // SAFETY: inside of the buffer, on which nothing is under way.
    unsafe { first.write_bytes(5, 100) };
    bench.streams[0].copy(&target.all(), &source.all()).unwrap();
    let event = bench.streams[0].record().unwrap();
    event.wait(None).unwrap();
    // SAFETY: the event lies behind the only work on the buffer.
    unsafe { first.write_bytes(6, 100) };
    bench.streams[0].synchronize().unwrap();
    let gate = bench.close_gate(&bench.streams[0]);
    bench.streams[0].copy(&target.all(), &source.all()).unwrap();
    bench.streams[0].fill(&source.all(), &[7]).unwrap();
    // The fill is not over when the next copy is enqueued, so what lies there now is not what that will read.
    bench.streams[0].copy(&target.all(), &source.all()).unwrap();
    gate.open();
    bench.streams[0].synchronize().unwrap();
    bench.nothing_found();
}

#[test]
fn leaks_are_listed_by_place_with_their_bytes() {
    let bench = Bench::cpu();
    let before = bench.layer.report_leaks();
    assert_eq!(before, 2);
    bench.found(FindingKind::Leak, &["2 streams of one place are still alive"]);
    let buffers: Vec<_> = [100, 200, 300].map(|len| bench.buffer(len)).into();
    let event = bench.streams[0].record().unwrap();
    let kernel = bench.increment();
    assert_eq!(bench.layer.report_leaks(), 2 + 3 + 1 + 1);
    let findings = bench.findings.take();
    let expected = [
        "3 buffers of one place are still alive, with 600 bytes",
        "an event is still alive",
        "a kernel is still alive",
        "2 streams of one place are still alive",
    ];
    assert_eq!(findings.len(), expected.len(), "{}", shown(&findings));
    for (finding, expected) in findings.iter().zip(expected) {
        assert_eq!(finding.kind, FindingKind::Leak);
        assert!(finding.message.contains(expected), "{finding}");
        let origin = finding.origin.as_ref().unwrap();
        assert!(origin.contains("main.rs") || origin.contains("reported.rs"), "{finding}");
    }
    drop((buffers, event, kernel));
    assert_eq!(bench.layer.report_leaks(), 2);
}

#[test]
fn the_same_from_the_same_place_is_told_once() {
    let bench = Bench::cpu();
    let kernel = bench.increment_in_place();
    for _ in 0..200 {
        let buffer = bench.buffer(8);
        bench.streams[0].launch(&kernel, [1, 1, 1], &[arg(&buffer)]).unwrap();
    }
    bench.found(FindingKind::UnwrittenRead, &["bytes 0 to 7"]);
}

#[test]
fn a_new_place_is_told_however_often_the_same_came_from_others() {
    let bench = Bench::cpu();
    let kernel = bench.increment_in_place();
    let launch = || bench.streams[0].launch(&kernel, [1, 1, 1], &[arg(&bench.buffer(8))]).unwrap();
    let lines = [line!() + 1, line!() + 2];
    (0..1000).for_each(|_| bench.streams[0].launch(&kernel, [1, 1, 1], &[arg(&bench.buffer(8))]).unwrap());
    bench.streams[0].launch(&kernel, [1, 1, 1], &[arg(&bench.buffer(8))]).unwrap();
    // Two ways to one place.
    launch();
    launch();
    let findings = bench.findings.take();
    assert_eq!(findings.len(), 3, "{}", shown(&findings));
    for (finding, line) in findings.iter().zip(lines) {
        assert!(finding.place.contains(&format!("reported.rs:{line} ")), "{line}: {finding}");
    }
}

#[test]
fn a_strict_layer_refuses_suspicions_too() {
    let bench = Bench::strict();
    let (fresh, out) = (bench.buffer(8), bench.written(8));
    let kernel = bench.increment();
    let error = bench.streams[0].launch(&kernel, [1, 1, 1], &[arg(&fresh), arg(&out)]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("which nothing has written; write or fill them first"), "{error}");
    bench.found(FindingKind::UnwrittenRead, &["increment"]);
    bench.streams[0].fill(&out.all(), &[1]).unwrap();
    let error = bench.streams[1].fill(&out.all(), &[2]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    bench.found(FindingKind::Race, &["the fill on stream 2"]);
    let mut bytes = [0; 8];
    bench.streams[0].read_blocking(&out.all(), &mut bytes).unwrap();
    assert_eq!(bytes, [1; 8], "what was refused was not done");
    // In a replay each command counts for the next.
    let fixed = |buffer: &Buffer| RecordedRange::Fixed(buffer.all());
    let mut commands = CommandListBuilder::new();
    commands.push(RecordedCommand::Fill { dst: fixed(&fresh), pattern: vec![1] });
    commands.push(RecordedCommand::Copy { dst: fixed(&out), src: fixed(&fresh) });
    let list = bench.device.finish(commands).unwrap();
    bench.streams[0].replay(&list, &[], &[]).unwrap();
    bench.streams[0].synchronize().unwrap();
    bench.nothing_found();
}

#[test]
fn the_only_setting_is_strict() {
    let layer = Validate::new();
    assert!(layer.configure("strict").is_ok());
    let error = layer.configure("lax").err().unwrap();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("'lax'") && error.message().contains("validate:strict"), "{error}");
}
