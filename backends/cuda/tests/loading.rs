//! Libraries that are there, absent, too old or no libraries: no panic, no output, and a reason.

mod common;

use common::*;
use halite_cuda::{CudaBackend, Libraries};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{DType, Error, ErrorKind, KernelSource, MemoryKind, Registry, Scalar, Signature};
use std::path::PathBuf;
use std::sync::Arc;

fn absence(libraries: Libraries) -> Error {
    let backend = CudaBackend::new().with_libraries(libraries);
    let error = backend.probe().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
    assert_eq!(backend.open(0).unwrap_err().message(), error.message());
    assert!(!error.message().contains('\n'), "{error}");
    error
}

fn driver(path: impl Into<PathBuf>) -> Libraries {
    Libraries { driver: Some(path.into()), ..Libraries::default() }
}

#[test]
fn without_a_driver_the_reason_says_what_was_looked_for() {
    let backend = CudaBackend::new().with_libraries(Libraries::default());
    match backend.probe() {
        Ok(devices) => println!("skipped: there is a driver, with {} devices", devices.len()),
        Err(error) => {
            assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
            let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            assert!(error.message().contains(name), "{error}");
            assert!(error.message().contains("HALITE_CUDA_LIBRARY"), "{error}");
        }
    }
}

#[test]
fn files_that_are_no_driver_are_named() {
    let error = absence(driver("/nowhere/libcuda.so.1"));
    assert!(error.message().contains("/nowhere/libcuda.so.1"), "{error}");
    let path = std::env::temp_dir().join(format!("halite-cuda-no-driver-{}", std::process::id()));
    std::fs::write(&path, "no library").unwrap();
    let error = absence(driver(&path));
    std::fs::remove_file(&path).unwrap();
    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn drivers_that_do_not_serve_say_why() {
    for (define, parts) in [
        ("WITHOUT_SYMBOL", &["has no function cuDevicePrimaryCtxRetain", "CUDA 11.4"][..]),
        ("VERSION=10020", &["CUDA 10.2", "too old", "CUDA 11.4"]),
        ("INIT_CODE=100", &["does not start", "CUDA_ERROR_NO_DEVICE, code 100"]),
        ("INIT_CODE=999", &["does not start", "CUDA_ERROR_UNKNOWN, code 999"]),
        ("INIT_CODE=998", &["does not start", "CUDA_ERROR_OF_THE_FUTURE, code 998"]),
        ("DEVICES=0", &["lists no device", "nvidia-smi"]),
    ] {
        let Some(fake) = Fake::new(&[define]) else { return };
        let error = absence(fake.libraries());
        for part in parts {
            assert!(error.message().contains(part), "{define}: {error}");
        }
    }
}

#[test]
fn a_driver_that_starts_later_is_found_then() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    fake.fail("cuInit", 802, 0);
    assert!(backend.probe().unwrap_err().message().contains("CUDA_ERROR_SYSTEM_NOT_READY"));
    assert_eq!(backend.probe().unwrap().len(), 2);
}

#[test]
fn a_device_that_does_not_open_says_why() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    fake.fail("cuDevicePrimaryCtxRetain", 46, 0);
    let error = backend.open(0).unwrap_err();
    assert_eq!((error.kind(), error.call()), (&ErrorKind::Unavailable, Some("cuDevicePrimaryCtxRetain")));
    assert!(error.message().contains("CUDA_ERROR_DEVICE_UNAVAILABLE, code 46"), "{error}");
    backend.open(0).unwrap();
    let error = backend.open(2).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
}

#[test]
fn the_device_tells_what_it_is() {
    let Some(fake) = Fake::new(&[]) else { return };
    let mut registry = Registry::new();
    registry.register(Arc::new(fake.backend())).unwrap();
    let devices = registry.probe().devices;
    assert_eq!(devices.iter().map(|info| info.id.to_string()).collect::<Vec<_>>(), ["cuda:0", "cuda:1"]);
    let device = registry.open("cuda:1").unwrap();
    assert_eq!(device.info(), &devices[1]);
    let info = device.info();
    assert_eq!((info.name.as_str(), info.vendor.as_str(), info.compute_units), ("Fake GPU 1", "NVIDIA", 4));
    assert!(info.driver_version.contains("CUDA 12.4"), "{}", info.driver_version);
    for feature in ["sm_80", "sm_90", "sm_90a", "tensor-cores", "bf16", "fp64", "nvrtc", "cublaslt"] {
        assert!(info.has_feature(feature), "{feature}");
    }
    for format in ["cuda-c", "cubin", "ptx", "builtin"] {
        assert!(info.accepts(format), "{format}");
    }
}

#[test]
fn with_the_driver_alone_devices_work_and_what_is_missing_is_said() {
    let Some(fake) = Fake::new(&[]) else { return };
    let nowhere = |name: &str| Some(PathBuf::from("/nowhere").join(name));
    let libraries =
        Libraries { nvrtc: nowhere("libnvrtc.so"), cublaslt: nowhere("libcublasLt.so"), ..fake.libraries() };
    let backend = CudaBackend::new().with_libraries(libraries);
    let found = backend.libraries();
    assert_eq!(found.iter().map(|library| library.name).collect::<Vec<_>>(), ["driver", "nvrtc", "cublaslt"]);
    assert_eq!(found[0].found.as_ref().unwrap().0, "12.4");
    for (library, name) in found[1..].iter().zip(["/nowhere/libnvrtc.so", "/nowhere/libcublasLt.so"]) {
        let error = library.found.as_ref().unwrap_err();
        assert!(error.message().contains(name), "{error}");
    }
    let device = backend.open(0).unwrap();
    assert!(!device.info().accepts("cuda-c") && !device.info().has_feature("cublaslt"));
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 16]);
    let desc = OperandDesc::contiguous(DType::F32, &[2, 2]);
    let op = |kind, count| KernelSource::Builtin(BuiltinOp::new(kind, vec![desc.clone(); count]).unwrap());
    let out = device.allocate(16, MemoryKind::Device).unwrap().all();
    let copy = device.load(&op(BuiltinKind::Copy, 2)).unwrap();
    stream.launch(&copy, [1, 1, 1], &[buffer.into(), out.clone().into()]).unwrap();
    assert_eq!(download(&stream, &out), [1; 16]);
    // What was compiled elsewhere runs, as the op library's own kernels do.
    let ptx = KernelSource::Binary {
        format: "ptx",
        bytes: b".version 6.0\n.target sm_50\n.visible .entry increment(".as_slice().into(),
        entry: "increment".into(),
        workgroup: [32, 1, 1],
        signature: Signature::new(vec![U32_BOTH, U32]),
        requires: Vec::new(),
    };
    let values = upload_u32(&device, &stream, &[1, 2, 3]);
    let kernel = device.load(&ptx).unwrap();
    stream.launch(&kernel, [1, 1, 1], &[values.clone().into(), Scalar::U32(3).into()]).unwrap();
    assert_eq!(download_u32(&stream, &values), [2, 3, 4]);
    let error = device.load(&op(BuiltinKind::MatMul, 3)).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unsupported);
    assert!(error.message().contains("/nowhere/libcublasLt.so"), "{error}");
    let error = load(&device, "increment", vec![U32_BOTH, U32]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unsupported);
    // Past the layer's own check, the backend says what it lacks.
    let error =
        device.driver().load(&text(SOURCE, "increment", "", [1, 1, 1], vec![U32_BOTH, U32])).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert!(error.message().contains("/nowhere/libnvrtc.so"), "{error}");
    assert!(
        error.message().contains("install it") && error.message().contains("HALITE_NVRTC_LIBRARY"),
        "{error}"
    );
}
