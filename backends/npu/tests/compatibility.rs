//! A plugin that was built from version 1.0 of the header, as a file that is never built again: later versions of the loader
//! must keep opening it. `data/README.md` says where it comes from.

#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]

mod common;

use common::{download, plugin, upload};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{DType, ErrorKind, Health, KernelSource, MemoryKind, as_bytes, from_bytes};

const FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/libhalite_npu_abi_1_0-x86_64-linux-gnu.so");

/// Of the file's bytes, so that nobody builds it anew without noticing (FNV-1a, 64 bits: http://isthe.com/chongo/tech/comp/fnv/).
const FINGERPRINT: u64 = 0x73E3_1513_E886_2A4C;

#[test]
fn the_file_is_the_one_that_was_built_then_and_small() {
    let bytes = std::fs::read(FILE).unwrap();
    assert!(bytes.len() < 32 << 10, "{} bytes", bytes.len());
    let hash = bytes.iter().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    assert_eq!(hash, FINGERPRINT, "{hash:#x}");
}

#[test]
fn a_plugin_of_version_1_0_is_described_as_it_was() {
    let backend = plugin(FILE);
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
    let device = plugin(FILE).with_option("fail_after", "9").open(0).unwrap();
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
