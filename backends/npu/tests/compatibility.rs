//! Plugins that were built from earlier versions of the header, as files that are never built again: later versions of the
//! loader must keep opening them. `data/README.md` says where they come from.

#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]

mod common;

use common::{download, plugin, upload};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{
    DType, DeviceInfo, ErrorKind, Health, HostMemory, KernelSource, MemoryKind, as_bytes, from_bytes,
};

const V1_0: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/libhalite_npu_abi_1_0-x86_64-linux-gnu.so");
const V1_1: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/libhalite_npu_abi_1_1-x86_64-linux-gnu.so");

/// The files, and what their bytes amount to, so that nobody builds them anew without noticing (FNV-1a, 64 bits:
/// http://isthe.com/chongo/tech/comp/fnv/).
const FINGERPRINTS: [(&str, u64); 2] = [(V1_0, 0x73E3_1513_E886_2A4C), (V1_1, 0x8491_F77E_A81D_593E)];

#[test]
fn the_files_are_those_that_were_built_then_and_small() {
    for (file, fingerprint) in FINGERPRINTS {
        let bytes = std::fs::read(file).unwrap();
        assert!(bytes.len() < 32 << 10, "{file}: {} bytes", bytes.len());
        let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        assert_eq!(hash, fingerprint, "{file}: {hash:#x}");
    }
}

#[test]
fn a_plugin_of_version_1_0_is_described_as_it_was() {
    let backend = plugin(V1_0);
    let info = backend.plugins().unwrap().remove(0);
    assert_eq!((info.name.as_str(), info.version.as_str()), ("Halite example", "1.0"));
    let device = backend.probe().unwrap().remove(0);
    assert_eq!((device.name.as_str(), device.vendor.as_str()), ("Halite example device", "Halite"));
    assert_eq!(device.memory_bytes, 256 << 20);
    assert_eq!(device.limits.max_allocation_bytes, 128 << 20);
    assert_eq!((device.limits.offset_alignment_bytes, device.limits.max_args), (1, 4));
    assert_eq!(device.dtypes.len(), 11);
    assert_eq!(device.features, ["emulated"]);
    assert_eq!(device.kernel_formats, ["builtin"]);
    let error = backend.with_option("unknown", "1").probe().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
}

#[test]
fn a_plugin_of_version_1_0_still_works() {
    let device = plugin(V1_0).with_option("fail_after", "9").open(0).unwrap();
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let lhs = upload(&device, &stream, as_bytes(&[1f32, 2., 3.]));
    let rhs = device.allocate(12, MemoryKind::Pinned).unwrap().all();
    stream.fill(&rhs, &0.5f32.to_le_bytes()).unwrap();
    let out = device.allocate(12, MemoryKind::Device).unwrap().all();
    let op = BuiltinOp::new(BuiltinKind::Add, vec![OperandDesc::contiguous(DType::F32, &[3]); 3]).unwrap();
    let add = device.load(&KernelSource::Builtin(op)).unwrap();
    let begin = stream.record().unwrap();
    stream.launch(&add, [1, 1, 1], &[lhs.clone().into(), rhs.clone().into(), out.clone().into()]).unwrap();
    stream.copy(&lhs.slice(0, 4).unwrap(), &out.slice(8, 4).unwrap()).unwrap();
    let end = stream.record().unwrap();
    other.wait(&end).unwrap();
    assert_eq!(from_bytes::<f32>(&download(&other, &out)), [1.5, 2.5, 3.5]);
    assert_eq!(from_bytes::<f32>(&download(&other, &lhs)), [3.5, 2., 3.]);
    assert!(end.elapsed_since(&begin).is_ok());
    assert_eq!(device.memory().unwrap().free_bytes, (256 << 20) - 36);

    let error = device.allocate(200 << 20, MemoryKind::Device).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    for _ in 0..9 {
        let _ = other.fill(&out, &[0]);
    }
    assert_eq!(other.synchronize().unwrap_err().kind(), &ErrorKind::Fault);
    other.reset().unwrap();
    other.synchronize().unwrap();
    assert_eq!(device.health(), Health::Ok);
    drop((stream, other, lhs, rhs, out, add, begin, end));
    assert_eq!(device.memory().unwrap().free_bytes, 256 << 20);
}

#[test]
fn a_plugin_of_version_1_1_imports_memory_and_copies_between_its_devices() {
    let backend = plugin(V1_1);
    let (device, peer) = (backend.open(0).unwrap(), backend.open(0).unwrap());
    let info = device.info();
    assert_eq!(info.limits.import_alignment_bytes, 1);
    assert_eq!(info.features, ["emulated", DeviceInfo::PEER_COPY]);
    let there = peer.create_stream().unwrap();
    let memory = HostMemory::from(vec![7; 1000]);
    let imported = peer.import(&memory).unwrap().all();
    there.fill(&imported.slice(0, 10).unwrap(), &[9]).unwrap();
    let link = device.create_peer_stream(&peer).unwrap();
    link.wait(&there.record().unwrap()).unwrap();
    let to = device.allocate(1000, MemoryKind::Device).unwrap().all();
    link.copy(&to, &imported).unwrap();
    let bytes = download(&link, &to);
    assert_eq!((&bytes[..10], &bytes[10..]), (&[9; 10][..], &[7; 990][..]));
    drop((imported, there, link));
    assert_eq!(*memory.into_bytes().unwrap(), *bytes);
}
