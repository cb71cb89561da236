//! Memory that the host lends, and streams that copy from another device.

use super::*;
use halite_hal::{ErrorKind, HostMemory};
use halite_npu::{NpuBackend, emulator_file_name};

/// Two emulated devices inside of one layer.
struct Pair {
    layer: Validate,
    findings: Findings,
    device: Device,
    peer: Device,
    /// Of the device, with the peer as a source.
    link: Stream,
    /// Of the peer.
    there: Stream,
}

fn emulated() -> Device {
    let file = std::env::current_exe().unwrap().with_file_name(emulator_file_name());
    NpuBackend::with_plugin(file).without_environment().open(0).unwrap()
}

impl Pair {
    fn open() -> Self {
        let (layer, findings) = Validate::collecting();
        let [device, peer] = [0, 1].map(|_| layer.wrap(emulated()).unwrap());
        let link = device.create_peer_stream(&peer).unwrap();
        let there = peer.create_stream().unwrap();
        Self { layer, findings, device, peer, link, there }
    }

    /// Memory of the peer that was filled on its stream.
    fn source(&self) -> Buffer {
        let buffer = self.peer.allocate(64, MemoryKind::Device).unwrap();
        self.there.fill(&buffer.all(), &[7]).unwrap();
        buffer
    }

    fn target(&self) -> Buffer {
        self.device.allocate(64, MemoryKind::Device).unwrap()
    }

    fn found(&self, kind: FindingKind, parts: &[&str]) {
        let findings = self.findings.take();
        assert_eq!(findings.len(), 1, "{}", shown(&findings));
        assert_eq!(findings[0].kind, kind, "{}", findings[0]);
        parts.iter().for_each(|part| assert!(findings[0].to_string().contains(part), "{}", findings[0]));
    }

    fn nothing_found(&self) {
        self.layer.check_red_zones();
        let findings = self.findings.take();
        assert!(findings.is_empty(), "{}", shown(&findings));
    }
}

#[test]
fn copies_that_wait_for_their_source_are_clean_whoever_waits_for_them() {
    let pair = Pair::open();
    let (from, to) = (pair.source(), pair.target());
    pair.link.wait(&pair.there.record().unwrap()).unwrap();
    pair.link.copy(&to.all(), &from.all()).unwrap();
    // Another stream of the device, and through it the host, which then knows of the source too.
    let here = pair.device.create_stream().unwrap();
    here.wait(&pair.link.record().unwrap()).unwrap();
    here.record().unwrap().wait(None).unwrap();
    pair.there.fill(&from.all(), &[8]).unwrap();
    let mut bytes = [0; 64];
    here.read_blocking(&to.all(), &mut bytes).unwrap();
    assert_eq!(bytes, [7; 64]);
    // And by a link that leads back, without the host.
    let back = pair.peer.create_peer_stream(&pair.device).unwrap();
    pair.link.wait(&pair.there.record().unwrap()).unwrap();
    pair.link.copy(&to.all(), &from.all()).unwrap();
    back.wait(&pair.link.record().unwrap()).unwrap();
    back.fill(&from.all(), &[9]).unwrap();
    back.synchronize().unwrap();
    pair.nothing_found();
}

#[test]
fn a_copy_that_does_not_wait_for_its_source_is_a_race() {
    let pair = Pair::open();
    let (from, to) = (pair.source(), pair.target());
    pair.link.copy(&to.all(), &from.all()).unwrap();
    pair.found(FindingKind::Race, &["the copy out of it", "the fill"]);
}

#[test]
fn a_source_that_changes_while_it_is_copied_is_a_race() {
    let pair = Pair::open();
    let (from, to) = (pair.source(), pair.target());
    pair.link.wait(&pair.there.record().unwrap()).unwrap();
    pair.link.copy(&to.all(), &from.all()).unwrap();
    pair.there.fill(&from.all(), &[8]).unwrap();
    pair.found(FindingKind::Race, &["the fill on stream", "the copy out of it"]);
}

#[test]
fn a_target_that_is_used_without_waiting_for_the_copy_is_a_race() {
    let pair = Pair::open();
    let (from, to) = (pair.source(), pair.target());
    pair.link.wait(&pair.there.record().unwrap()).unwrap();
    pair.link.copy(&to.all(), &from.all()).unwrap();
    pair.device.create_stream().unwrap().read_blocking(&to.all(), &mut [0; 64]).unwrap();
    pair.found(FindingKind::Race, &["the read by the host", "the copy into it"]);
}

#[test]
fn unwritten_bytes_stay_unwritten_on_their_way() {
    let pair = Pair::open();
    let (from, to) = (pair.peer.allocate(64, MemoryKind::Device).unwrap(), pair.target());
    pair.there.fill(&from.slice(0, 32).unwrap(), &[1]).unwrap();
    pair.link.wait(&pair.there.record().unwrap()).unwrap();
    pair.link.copy(&to.all(), &from.all()).unwrap();
    pair.link.read_blocking(&to.slice(0, 32).unwrap(), &mut [0; 32]).unwrap();
    pair.nothing_found();
    pair.link.read_blocking(&to.all(), &mut [0; 64]).unwrap();
    pair.found(FindingKind::UnwrittenRead, &["bytes 32 to 63"]);
}

#[test]
fn devices_of_two_layers_know_too_little_of_each_other() {
    let pair = Pair::open();
    let (other, _findings) = Validate::collecting();
    let stranger = other.wrap(emulated()).unwrap();
    let error = pair.device.create_peer_stream(&stranger).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unsupported);
    assert!(error.message().contains("open both from one registry"), "{error}");
    pair.nothing_found();
}

#[test]
fn imported_memory_counts_as_written_and_is_watched_while_work_reads_it() {
    let bench = Bench::cpu();
    let memory = HostMemory::from(vec![1u8; 64]);
    let imported = bench.device.import(&memory).unwrap();
    let out = bench.buffer(64);
    bench.streams[0].launch(&bench.increment(), [1, 1, 1], &[arg(&imported), arg(&out)]).unwrap();
    bench.streams[0].synchronize().unwrap();
    bench.nothing_found();
    let gate = bench.close_gate(&bench.streams[0]);
    bench.streams[0].copy(&out.all(), &imported.all()).unwrap();
    // SAFETY: inside of the memory; that the copy is under way is the mistake that is to be found.
    unsafe { memory.as_ptr().as_ptr().add(5).write_volatile(9) };
    gate.open();
    bench.streams[0].synchronize().unwrap();
    bench.found(FindingKind::HostMemoryChanged, &["bytes 0 to 63"]);
}

#[test]
fn imported_memory_is_part_of_races_and_leaks() {
    let bench = Bench::cpu();
    let memory = HostMemory::zeroed(128).unwrap();
    let imported = bench.device.import(&memory).unwrap();
    bench.streams[0].fill(&imported.all(), &[1]).unwrap();
    bench.streams[1].fill(&imported.all(), &[2]).unwrap();
    bench.found(FindingKind::Race, &["bytes 0 to 127"]);
    bench.streams.iter().for_each(|stream| stream.synchronize().unwrap());
    assert_eq!(bench.layer.report_leaks(), 3);
    assert!(bench.findings.take().iter().any(|finding| finding.message.contains("a buffer is still alive")));
    drop(imported);
    assert_eq!(bench.layer.report_leaks(), 2);
}
