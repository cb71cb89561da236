//! The compiler without a device: real NVRTC, whose absence is a failure with `HALITE_REQUIRE_NVRTC=1`.
//!
//! With `HALITE_WRITE_PTX=1`, `src/builtin.ptx` is made anew of `src/builtin.cu`.

mod common;

use common::SOURCE;
use halite_cuda::{Compiler, Libraries};
use halite_hal::ErrorKind;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The architectures of the devices that are supported, as far as an NVRTC knows them.
const ARCHITECTURES: [(u32, &str); 7] = [
    (75, "sm_75"),
    (80, "sm_80"),
    (87, "sm_87"),
    (89, "sm_89"),
    (90, "sm_90"),
    (90, "sm_90a"),
    (100, "sm_100"),
];

fn compiler() -> Option<Compiler> {
    match Compiler::find() {
        Ok(compiler) => Some(compiler),
        Err(error) => {
            let required = std::env::var("HALITE_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
            assert!(!required, "HALITE_REQUIRE_NVRTC=1: {error}");
            println!("skipped: {}", error.message());
            None
        }
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    let Some(compiler) = compiler() else { return };
    println!("NVRTC {} at {}", compiler.version(), compiler.path().display());
    let mut compiled = 0;
    for (number, architecture) in ARCHITECTURES {
        if !compiler.architectures().contains(&number) {
            println!("skipped: NVRTC {} does not know {architecture}", compiler.version());
            continue;
        }
        let cubin = compiler.compile("tests", SOURCE, "--fmad=false", architecture).unwrap();
        assert!(cubin.starts_with(b"\x7fELF"), "{architecture}");
        compiled += 1;
    }
    assert!(compiled >= 3);
    let ptx = compiler.compile("tests", SOURCE, "", "compute_80").unwrap();
    let ptx = String::from_utf8(ptx).unwrap();
    assert!(ptx.contains(".target sm_80") && ptx.contains(".entry increment(") && !ptx.contains('\0'));
}

#[test]
fn a_log_names_file_line_and_fault() {
    let Some(compiler) = compiler() else { return };
    let source = "extern \"C\" __global__ void k() {\n    undeclared = 1;\n}";
    let error = compiler.compile("bad", source, "", "sm_80").unwrap_err();
    let ErrorKind::Build { log } = error.kind() else { panic!("{error}") };
    assert!(log.contains("bad.cu(2)") && log.contains("undeclared"), "{log}");
    assert!(error.message().contains("NVRTC_ERROR_COMPILATION"), "{error}");
    for (options, architecture) in [("--no-such-option", "sm_80"), ("", "sm_1")] {
        let error = compiler.compile("k", SOURCE, options, architecture).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Build { .. }), "{error}");
    }
    for (source, architecture) in [("a\0b", "sm_80"), (SOURCE, "90")] {
        let error = compiler.compile("k", source, "", architecture).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    }
}

#[test]
fn headers_are_found_where_they_are_installed() {
    let Some(compiler) = compiler() else { return };
    let source = "#include <cuda_fp16.h>\nextern \"C\" __global__ void k(__half *x) { *x = __hadd(*x, *x); }";
    match compiler.compile("half", source, "", "sm_80") {
        Ok(_) => {}
        Err(error) => {
            let ErrorKind::Build { log } = error.kind() else { panic!("{error}") };
            assert!(log.contains("cuda_fp16.h"), "{log}");
            println!("skipped: no headers are installed beside {}", compiler.path().display());
        }
    }
}

#[test]
fn threads_compile_at_once() {
    let Some(compiler) = compiler() else { return };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || {
                let source = format!("extern \"C\" __global__ void k(int *x) {{ *x = {seed}; }}");
                assert!(compiler.compile("k", &source, "", "sm_80").unwrap().len() > 100);
            });
        }
    });
}

#[test]
fn an_absent_compiler_says_what_was_looked_for() {
    let libraries = Libraries { nvrtc: Some("/nowhere/libnvrtc.so.12".into()), ..Libraries::default() };
    let error = Compiler::with_libraries(&libraries).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable);
    assert!(error.message().contains("/nowhere/libnvrtc.so.12"), "{error}");
    assert!(error.message().contains("HALITE_NVRTC_LIBRARY"), "{error}");
}

/// The text depends on the compiler, so it is compared where the one is there that made it.
const PTX_COMPILER: &str = "12.9";

#[test]
fn the_shipped_ptx_is_what_the_compiler_makes_of_its_source() {
    let Some(compiler) = compiler() else { return };
    if compiler.version() != PTX_COMPILER {
        println!("skipped: the PTX was made by NVRTC {PTX_COMPILER}, this is {}", compiler.version());
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let source = std::fs::read_to_string(folder.join("builtin.cu")).unwrap().replace("\r\n", "\n");
    let ptx = compiler.compile("builtin", &source, "", "compute_50").unwrap();
    let ptx = String::from_utf8(ptx).unwrap();
    let (_, body) = ptx.split_once(".version ").unwrap();
    let (_, body) = body.split_once('\n').unwrap();
    let hash: String = Sha256::digest(&source).iter().map(|byte| format!("{byte:02x}")).collect();
    // An old version of PTX, so that old drivers take it; nothing in the code is newer.
    let expected = format!(
        "// Made of builtin.cu, sha256 {hash}, by NVRTC {PTX_COMPILER} for compute_50: see tests/nvrtc.rs.\n.version 6.0\n{body}"
    );
    let path: PathBuf = folder.join("builtin.ptx");
    if std::env::var("HALITE_WRITE_PTX").is_ok_and(|value| value == "1") {
        std::fs::write(&path, &expected).unwrap();
    }
    let shipped = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
    assert!(shipped == expected, "make it anew: HALITE_WRITE_PTX=1 cargo test -p halite-cuda --test nvrtc");
}
