//! The layers `fault`, `verify` and `trace` on memory that the host lends, and on streams that copy from another device.

#![allow(missing_docs)]

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::driver::Backend;
use halite_hal::{Buffer, Device, ErrorKind, Health, HostMemory, Layer, MemoryKind, Stream};
use halite_layers::fault::Fault;
use halite_layers::trace::TraceLayer;
use halite_layers::verify::Verify;
use halite_npu::{NpuBackend, emulator_file_name};
use serde_json::Value;
use std::sync::Arc;

fn emulated() -> Device {
    let file = std::env::current_exe().unwrap().with_file_name(emulator_file_name());
    NpuBackend::with_plugin(file).without_environment().open(0).unwrap()
}

fn cpu() -> Device {
    CpuBackend::new(CpuConfig { threads: Some(2), memory_limit_bytes: Some(1 << 20) }).open(0).unwrap()
}

/// A device with one script, and its peer with another, inside of `outer`.
fn pair(script: &str, of_peer: &str, outer: &[Arc<dyn Layer>]) -> [Device; 2] {
    [script, of_peer].map(|script| {
        let device = Fault::with_script(script).unwrap().wrap(emulated()).unwrap();
        outer.iter().fold(device, |device, layer| layer.wrap(device).unwrap())
    })
}

fn filled(device: &Device, stream: &Stream, value: u8) -> Buffer {
    let buffer = device.allocate(1000, MemoryKind::Device).unwrap();
    stream.fill(&buffer.all(), &[value]).unwrap();
    buffer
}

fn bytes(stream: &Stream, buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len_bytes() as usize];
    stream.read_blocking(&buffer.all(), &mut bytes).unwrap();
    bytes
}

/// A rule that strikes nowhere here.
const NOTHING: &str = "load@1000=fail";

#[test]
fn without_a_rule_nothing_befalls_a_link() {
    let [device, peer] = pair(NOTHING, NOTHING, &[Arc::new(Verify)]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let (from, to) = (filled(&peer, &there, 7), filled(&device, &link, 0));
    link.wait(&there.record().unwrap()).unwrap();
    link.copy(&to.all(), &from.all()).unwrap();
    assert_eq!(bytes(&link, &to), [7; 1000]);
}

#[test]
fn a_corrupted_copy_over_a_link_is_found_and_made_again() {
    let [device, peer] = pair("copy@1=corrupt once", NOTHING, &[]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let (from, to) = (filled(&peer, &there, 7), filled(&device, &link, 0));
    link.wait(&there.record().unwrap()).unwrap();
    link.copy(&to.all(), &from.all()).unwrap();
    assert_ne!(bytes(&link, &to), [7; 1000], "without verification nobody notices");
    let [device, peer] = pair("copy@1=corrupt once", NOTHING, &[Arc::new(Verify)]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let (from, to) = (filled(&peer, &there, 7), filled(&device, &link, 0));
    link.wait(&there.record().unwrap()).unwrap();
    link.copy(&to.all(), &from.all()).unwrap();
    assert_eq!(bytes(&link, &to), [7; 1000]);
    let [device, peer] = pair("copy%1=corrupt", NOTHING, &[Arc::new(Verify)]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let (from, to) = (filled(&peer, &there, 7), filled(&device, &link, 0));
    link.wait(&there.record().unwrap()).unwrap();
    assert_eq!(link.copy(&to.all(), &from.all()).unwrap_err().kind(), &ErrorKind::Link);
}

#[test]
fn an_injected_failure_of_the_peer_travels_through_the_wait() {
    let [device, peer] = pair(NOTHING, "fill@2=fault", &[]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let from = filled(&peer, &there, 7);
    there.fill(&from.all(), &[8]).unwrap();
    let failed = there.record().unwrap();
    let to = filled(&device, &link, 0);
    let _ = link.wait(&failed).and_then(|()| link.copy(&to.all(), &from.all()));
    assert_eq!(link.synchronize().unwrap_err().kind(), &ErrorKind::Fault);
    link.reset().unwrap();
    assert_eq!(bytes(&link, &to), [0; 1000], "nothing was copied");
    assert_eq!(device.health(), Health::Ok);
}

#[test]
fn a_lost_peer_breaks_the_link_and_leaves_the_device() {
    let [device, peer] = pair(NOTHING, "fill@3=lost", &[]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let (from, to) = (filled(&peer, &there, 7), filled(&device, &link, 5));
    there.fill(&from.all(), &[8]).unwrap();
    assert_eq!(there.fill(&from.all(), &[9]).unwrap_err().kind(), &ErrorKind::DeviceLost);
    link.copy(&to.all(), &from.all()).unwrap();
    assert_eq!(link.synchronize().unwrap_err().kind(), &ErrorKind::Link);
    link.reset().unwrap();
    assert_eq!(bytes(&link, &to), [5; 1000]);
    assert_eq!(device.health(), Health::Ok);
}

#[test]
fn a_wait_for_a_lost_peer_fails_the_link_unless_its_work_was_seen_done() {
    let [device, peer] = pair(NOTHING, "fill@2=lost", &[]);
    let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
    let from = filled(&peer, &there, 7);
    let [seen, unseen] = [0, 1].map(|_| there.record().unwrap());
    seen.wait(None).unwrap();
    assert_eq!(there.fill(&from.all(), &[9]).unwrap_err().kind(), &ErrorKind::DeviceLost);
    link.wait(&seen).unwrap();
    link.synchronize().unwrap();
    link.wait(&unseen).unwrap();
    assert_eq!(link.synchronize().unwrap_err().kind(), &ErrorKind::Link);
    link.reset().unwrap();
    link.synchronize().unwrap();
    assert_eq!(device.health(), Health::Ok);
}

#[test]
fn memory_is_lent_until_the_device_is_lost() {
    let device = Fault::with_script("fill@2=lost").unwrap().wrap(cpu()).unwrap();
    let memory = HostMemory::zeroed(16).unwrap();
    let imported = device.import(&memory).unwrap();
    let stream = device.create_stream().unwrap();
    stream.fill(&imported.all(), &[3]).unwrap();
    assert_eq!(bytes(&stream, &imported), [3; 16]);
    assert_eq!(stream.fill(&imported.all(), &[4]).unwrap_err().kind(), &ErrorKind::DeviceLost);
    let other = HostMemory::zeroed(16).unwrap();
    assert_eq!(device.import(&other).unwrap_err().kind(), &ErrorKind::DeviceLost);
    drop((imported, stream, device));
    assert_eq!(*memory.into_bytes().unwrap(), [3; 16]);
}

#[test]
fn a_timeline_shows_imports_and_copies_between_devices() {
    let path = std::env::temp_dir().join(format!("halite-links-{}.json", std::process::id()));
    {
        let layer = TraceLayer::to_file(&path);
        let [device, peer] = [0, 1].map(|_| layer.wrap(emulated()).unwrap());
        let (link, there) = (device.create_peer_stream(&peer).unwrap(), peer.create_stream().unwrap());
        let (from, to) = (filled(&peer, &there, 7), filled(&device, &link, 0));
        link.wait(&there.record().unwrap()).unwrap();
        link.copy(&to.all(), &from.all()).unwrap();
        assert_eq!(bytes(&link, &to), [7; 1000]);
        let cpu = layer.wrap(cpu()).unwrap();
        let imported = cpu.import(&HostMemory::zeroed(77).unwrap()).unwrap();
        assert_eq!(cpu.memory().unwrap().used_bytes, 0);
        drop(imported);
    }
    let lines: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let named = |name: &str| lines.iter().filter(|line| line["name"] == name).collect::<Vec<_>>();
    let copies = named("copy");
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert_eq!(copies[0]["args"]["bytes"], 1000);
    assert!(copies[0]["dur"].as_f64().is_some(), "it has a time: {:?}", copies[0]);
    assert_eq!(named("import")[0]["args"]["bytes"], 77);
    let links: Vec<_> =
        named("create stream").into_iter().filter(|line| line["args"]["peer"] == "npu:0").collect();
    assert_eq!(links.len(), 1);
    let _ = std::fs::remove_file(&path);
}
