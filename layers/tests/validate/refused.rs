//! What must not reach a driver. Handles let nothing of it through, so these tests call the layer as a driver.

use super::*;
use halite_hal::driver::{self, HostBytes};
use halite_hal::{
    CommandListBuilder, Error, ErrorKind, Event, RecordedArg, RecordedCommand, RecordedRange, Result, Scalar,
};
use std::time::Duration;

/// The layer's stream without the handle's checks.
fn raw(bench: &Bench) -> Box<dyn driver::Stream> {
    bench.device.driver().create_stream().unwrap()
}

/// The call was refused with the finding's words, and the driver did nothing that a synchronisation would show.
#[track_caller]
fn assert_refused(bench: &Bench, result: Result<()>, kind: FindingKind, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    let finding = bench.found(kind, parts);
    assert!(
        error.message().contains(&finding.message) && error.message().contains(&finding.remedy),
        "{error}"
    );
    assert!(finding.place.contains("refused.rs:"), "{finding}");
}

#[test]
fn buffers_of_another_opening() {
    let (bench, other) = (Bench::cpu(), Bench::cpu());
    let (own, foreign) = (bench.written(8), other.written(8));
    let stream = raw(&bench);
    let parts = ["did not allocate", "mend:   allocate it"];
    let mut host = [0; 8];
    let results = [
        stream.write(&foreign.all(), vec![0; 8].into()),
        stream.write_blocking(&foreign.all(), &host),
        stream.read_blocking(&foreign.all(), &mut host),
        stream.copy(&own.all(), &foreign.all()),
        stream.copy(&foreign.all(), &own.all()),
        stream.fill(&foreign.all(), &[0]),
        stream.launch(&bench.increment(), [1, 1, 1], &[arg(&own), arg(&foreign)]),
    ];
    let calls = results.len();
    for result in results {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::InvalidArgument);
    }
    let findings = bench.findings.take();
    assert_eq!(findings.len(), calls, "{}", shown(&findings));
    for finding in findings {
        assert_eq!(finding.kind, FindingKind::ForeignHandle);
        parts.iter().for_each(|part| assert!(finding.to_string().contains(part), "{finding}"));
    }
    other.nothing_found();
}

#[test]
fn buffers_that_were_made_inside_of_the_layer() {
    let inner = cpu_device(None);
    let below = inner.allocate(8, MemoryKind::Device).unwrap();
    let bench = Bench::around(inner);
    // The same opening, so the handle has nothing against it.
    let result = bench.streams[0].fill(&below.all(), &[0]);
    assert_refused(&bench, result, FindingKind::ForeignHandle, &["stream.fill", "target"]);
}

#[test]
fn kernels_lists_and_events_of_another_opening() {
    let (bench, other) = (Bench::cpu(), Bench::cpu());
    let stream = raw(&bench);
    let kernel = other.kernel("theirs", &[], |_| Ok(()));
    let result = stream.launch(&kernel, [1, 1, 1], &[]);
    assert_refused(&bench, result, FindingKind::ForeignHandle, &["kernel 'theirs'", "did not load"]);
    let list = other.device.finish(CommandListBuilder::new()).unwrap();
    let result = stream.replay(&list, &[], &[]);
    assert_refused(&bench, result, FindingKind::ForeignHandle, &["CommandList#", "record it anew"]);
    let event = other.streams[0].record().unwrap();
    let result = stream.wait(&event);
    assert_refused(&bench, result, FindingKind::EventNotRecorded, &["no stream of this opening"]);
}

#[test]
fn events_that_nobody_recorded() {
    struct Never;
    impl driver::Event for Never {
        fn is_done(&self) -> Result<bool> {
            Ok(false)
        }

        fn wait(&self, _timeout: Option<Duration>) -> Result<()> {
            Err(Error::invalid("never"))
        }

        fn elapsed_since(&self, _earlier: &Event) -> Result<Duration> {
            Err(Error::invalid("never"))
        }
    }
    let bench = Bench::cpu();
    let event = Event::new(bench.device.id().clone(), Box::new(Never));
    let result = bench.streams[0].wait(&event);
    assert_refused(&bench, result, FindingKind::EventNotRecorded, &["Event#", "record it on a stream"]);
}

#[test]
fn copies_beyond_their_ranges() {
    let bench = Bench::cpu();
    let (a, b) = (bench.written(8), bench.written(12));
    let stream = raw(&bench);
    let result = stream.write(&a.all(), HostBytes::from(vec![0; 9]));
    assert_refused(&bench, result, FindingKind::OutOfRange, &["9 bytes of the host", "range of 8"]);
    let result = stream.write_blocking(&a.all(), &[0; 7]);
    assert_refused(&bench, result, FindingKind::OutOfRange, &["7 bytes of the host", "range of 8"]);
    let result = stream.read_blocking(&a.all(), &mut [0; 100]);
    assert_refused(&bench, result, FindingKind::OutOfRange, &["100 bytes of the host"]);
    let result = stream.copy(&a.all(), &b.all());
    assert_refused(&bench, result, FindingKind::OutOfRange, &["source of 12 bytes", "target of 8"]);
}

#[test]
fn copies_onto_themselves() {
    let bench = Bench::cpu();
    let buffer = bench.written(16);
    let result = raw(&bench).copy(&buffer.slice(0, 8).unwrap(), &buffer.slice(7, 8).unwrap());
    assert_refused(&bench, result, FindingKind::Overlap, &["7..15", "0..8", "third range"]);
}

#[test]
fn patterns_and_arguments_that_start_at_odd_places() {
    let (_, bench) = Bench::null(NullConfig { offset_alignment_bytes: 64, ..NullConfig::default() });
    let buffer = bench.buffer(256);
    let stream = raw(&bench);
    let result = stream.fill(&buffer.slice(2, 8).unwrap(), &[0; 4]);
    assert_refused(&bench, result, FindingKind::Misaligned, &["8 bytes at offset 2", "pattern of 4"]);
    let result = stream.fill(&buffer.all(), &[]);
    assert_refused(&bench, result, FindingKind::Misaligned, &["pattern of 0"]);
    let kernel = bench.kernel("aligned", &[bytes(Access::Write)], |_| Ok(()));
    let result = stream.launch(&kernel, [1, 1, 1], &[Arg::Buffer(buffer.slice(32, 8).unwrap())]);
    assert_refused(&bench, result, FindingKind::Misaligned, &["'aligned'", "byte 32", "multiples of 64"]);
}

#[test]
fn launches_that_do_not_fit_their_signature() {
    let bench = Bench::cpu();
    let (a, b) = (bench.written(8), bench.written(8));
    let (stream, kernel) = (raw(&bench), bench.increment());
    let launch = |args: &[Arg]| stream.launch(&kernel, [1, 1, 1], args);
    assert_refused(&bench, launch(&[arg(&a)]), FindingKind::Signature, &["takes 2 arguments, got 1"]);
    let scalar = Arg::Scalar(Scalar::F32(1.0));
    assert_refused(
        &bench,
        launch(&[arg(&a), scalar]),
        FindingKind::Signature,
        &["argument 1", "got a scalar"],
    );
    assert_refused(&bench, launch(&[arg(&a), arg(&a)]), FindingKind::Signature, &["overlaps argument 0"]);
    launch(&[arg(&a), arg(&b)]).unwrap();
    stream.synchronize(None).unwrap();
    bench.nothing_found();
}

#[test]
fn launches_beyond_the_limits() {
    let (_, bench) = Bench::null(NullConfig { max_grid: [100, 10, 1], ..NullConfig::default() });
    let (stream, kernel) = (raw(&bench), bench.kernel("wide", &[], |_| Ok(())));
    for grid in [[101, 1, 1], [1, 11, 1], [1, 1, 2], [0, 1, 1]] {
        let result = stream.launch(&kernel, grid, &[]);
        assert_refused(
            &bench,
            result,
            FindingKind::Limit,
            &["kernel 'wide'", &format!("{grid:?}"), "[100, 10, 1]"],
        );
    }
    let many = vec![Arg::Scalar(Scalar::F32(0.0)); 65];
    let result = stream.launch(&kernel, [1, 1, 1], &many);
    assert_refused(&bench, result, FindingKind::Limit, &["65 arguments"]);
    stream.launch(&kernel, [100, 10, 1], &[]).unwrap();
    bench.nothing_found();
}

#[test]
fn replays_whose_bindings_do_not_fit() {
    let bench = Bench::cpu();
    let (a, b) = (bench.written(64), bench.written(64));
    let slot = |slot| RecordedArg::Buffer(RecordedRange::Slot { slot, offset: 8, len: 16 });
    let mut commands = CommandListBuilder::new();
    let (kernel, grid) = (bench.increment(), [1, 1, 1]);
    commands.push(RecordedCommand::Launch { kernel, grid, args: vec![slot(0), slot(1)] });
    let list = bench.device.finish(commands).unwrap();
    let stream = raw(&bench);
    let short = b.slice(0, 23).unwrap();
    let result = stream.replay(&list, &[a.all(), short], &[]);
    assert_refused(&bench, result, FindingKind::OutOfRange, &["23 bytes to slot 1", "needs 24"]);
    let result = stream.replay(&list, &[a.all()], &[]);
    assert_refused(&bench, result, FindingKind::Signature, &["binds 1 buffers", "2 and 0 slots"]);
    // Distinct slots, one memory: only the binding shows it.
    let result = stream.replay(&list, &[a.all(), a.slice(4, 60).unwrap()], &[]);
    assert_refused(&bench, result, FindingKind::Signature, &["a recorded launch", "overlaps argument"]);
    let other = Bench::cpu();
    let result = stream.replay(&list, &[a.all(), other.written(64).all()], &[]);
    assert_refused(&bench, result, FindingKind::ForeignHandle, &["a recorded launch", "argument"]);
    stream.replay(&list, &[a.all(), b.all()], &[]).unwrap();
    stream.synchronize(None).unwrap();
    bench.nothing_found();
}

#[test]
fn work_for_a_device_that_has_said_it_is_lost() {
    let (null, bench) = Bench::null(NullConfig::default());
    let buffer = bench.buffer(8);
    bench.streams[0].fill(&buffer.all(), &[0]).unwrap();
    null.lose("unplugged");
    // The first call is how the caller learns of it.
    assert_eq!(bench.streams[0].fill(&buffer.all(), &[0]).unwrap_err().kind(), &ErrorKind::DeviceLost);
    bench.nothing_found();
    for _ in 0..3 {
        let error = bench.streams[1].fill(&buffer.all(), &[0]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::DeviceLost);
        assert!(error.message().starts_with("unplugged"), "{error}");
    }
    bench.found(FindingKind::AfterLoss, &["stream.fill", "unplugged", "open the device anew"]);
    assert_eq!(bench.device.create_stream().unwrap_err().kind(), &ErrorKind::DeviceLost);
    bench.found(FindingKind::AfterLoss, &["device.create_stream"]);
    // Cleaning up is no misuse.
    assert_eq!(bench.streams[0].reset().unwrap_err().kind(), &ErrorKind::DeviceLost);
    assert!(bench.streams[0].synchronize().is_err());
    drop(buffer);
    bench.nothing_found();
}

#[test]
fn the_handles_refuse_foreign_objects_before_the_layer_sees_them() {
    let (bench, other) = (Bench::cpu(), Bench::cpu());
    let (own, foreign) = (bench.written(8), other.written(8));
    let stream = &bench.streams[0];
    let refused = [
        stream.fill(&foreign.all(), &[0]),
        stream.write(&foreign.all(), vec![0; 8]),
        stream.copy(&own.all(), &foreign.all()),
        stream.launch(&other.increment(), [1, 1, 1], &[]),
        stream.wait(&other.streams[0].record().unwrap()),
        stream.write(&own.all(), vec![0; 9]),
        stream.copy(&own.slice(0, 4).unwrap(), &own.slice(3, 4).unwrap()),
        own.slice(4, 5).map(|_| ()),
    ];
    for (index, result) in refused.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::InvalidArgument, "{index}");
    }
    bench.nothing_found();
    other.nothing_found();
}
