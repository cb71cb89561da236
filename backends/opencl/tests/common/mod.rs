//! Devices for tests, and shorthands.
#![allow(dead_code, reason = "each test file uses a part")]

use halite_hal::driver::Backend as _;
use halite_hal::{
    Access, ArgType, BufferSlice, DType, Device, Error, Kernel, KernelSource, MemoryKind, Signature, Stream,
};
use halite_opencl::{LIBRARY_VARIABLE, OpenClBackend};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set where a missing OpenCL device is a failure and no reason to skip.
const REQUIRED: &str = "HALITE_REQUIRE_OPENCL";

/// The device under test, opened anew; `None`, with a printed reason, where there is none.
pub(crate) fn device() -> Option<Device> {
    found(backend().open(0))
}

/// The backend, with compiled kernels in the folder of the tests.
pub(crate) fn backend() -> OpenClBackend {
    OpenClBackend::new().with_cache_folder(temporary().join("kernels"))
}

/// What was found; `None`, with a printed reason, where nothing was and nothing has to be.
pub(crate) fn found<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(found) => Some(found),
        Err(error) if std::env::var_os(REQUIRED).is_some_and(|value| value == "1") => {
            panic!("{REQUIRED} is set, but there is no OpenCL device: {error}")
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// A fresh folder that is removed when dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("halite-opencl-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Kernels that the tests use: `double_it` writes x + x, `slow` adds 1 to its first element and takes its time,
/// `increment` adds 1 to every element.
pub(crate) const SOURCE: &str = "
__kernel void double_it(__global const float *x, __global float *out, uint n) {
    size_t i = get_global_id(0);
    if (i < n) out[i] = x[i] + x[i];
}
__kernel void increment(__global uint *x, uint n) {
    size_t i = get_global_id(0);
    if (i < n) x[i] += 1;
}
__kernel void slow(__global uint *x, uint rounds) {
    uint state = x[0];
    for (uint i = 0; i < rounds; ++i) state = state * 1664525u + 1013904223u;
    x[1] = state;
    x[0] += 1;
}
__kernel void fault() {}
";

/// Enough rounds of `slow` for a fraction of a second.
pub(crate) const SLOW_ROUNDS: u32 = 150_000_000;

pub(crate) const F32_IN: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::Read };
pub(crate) const F32_OUT: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::Write };
pub(crate) const U32_BOTH: ArgType = ArgType::Buffer { dtype: DType::U32, access: Access::ReadWrite };
pub(crate) const U32: ArgType = ArgType::Scalar(DType::U32);

/// A source of OpenCL C without options and requirements.
pub(crate) fn text(source: &str, entry: &str, workgroup: [u32; 3], args: Vec<ArgType>) -> KernelSource {
    KernelSource::Text {
        language: "opencl-c",
        source: source.into(),
        entry: entry.into(),
        options: String::new(),
        workgroup,
        signature: Signature::new(args),
        requires: Vec::new(),
    }
}

pub(crate) fn double_it(device: &Device) -> Kernel {
    device.load(&text(SOURCE, "double_it", [16, 1, 1], vec![F32_IN, F32_OUT, U32])).unwrap()
}

pub(crate) fn increment(device: &Device) -> Kernel {
    device.load(&text(SOURCE, "increment", [16, 1, 1], vec![U32_BOTH, U32])).unwrap()
}

pub(crate) fn slow(device: &Device) -> Kernel {
    device.load(&text(SOURCE, "slow", [1, 1, 1], vec![U32_BOTH, U32])).unwrap()
}

/// A kernel that ends as the misbehaving driver is told to.
pub(crate) fn fault(device: &Device) -> Kernel {
    device.load(&text(SOURCE, "fault", [1, 1, 1], vec![])).unwrap()
}

/// A new buffer with these bytes.
pub(crate) fn upload(device: &Device, stream: &Stream, bytes: &[u8]) -> BufferSlice {
    let slice = device.allocate(bytes.len() as u64, MemoryKind::Device).unwrap().all();
    stream.write(&slice, bytes).unwrap();
    slice
}

/// The bytes of a range.
pub(crate) fn download(stream: &Stream, slice: &BufferSlice) -> Vec<u8> {
    stream.read(slice).unwrap().wait().unwrap()
}

/// Runs the test of this name again, alone in a process with these variables and a driver that misbehaves as they say
/// (see `shim/shim.c`). `Some` in that process, `None` in this one, where the outcome has been checked.
pub(crate) fn with_shim(test: &str, variables: &[(&str, &str)]) -> Option<()> {
    const CHILD: &str = "HALITE_OPENCL_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return Some(());
    }
    device()?;
    let shim = shim()?;
    let variables = variables.iter().copied();
    child(test, variables.chain([(CHILD, "1"), (LIBRARY_VARIABLE, shim.to_str().unwrap())]));
    None
}

/// Runs one test of this executable alone in a process with these variables, and checks that it passed.
pub(crate) fn child<'a>(test: &str, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).envs(variables);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{test} in a process of its own: {text}");
}

/// The library of `shim/shim.c`; `None`, with a printed reason, where it cannot be compiled.
fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let compile = || {
        if !cfg!(target_os = "linux") {
            println!("skipped: the misbehaving driver is written for Linux");
            return None;
        }
        // Other test processes may compile it at the same time.
        let name = format!("libshim-{}.so", std::process::id());
        let (beside, path) = (temporary().join(name), temporary().join("libshim.so"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/shim.c");
        let mut command = Command::new("cc");
        command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"]);
        match command.arg(&beside).args([source, "-ldl"]).output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                std::fs::rename(beside, &path).unwrap();
                Some(path)
            }
            Err(error) => {
                println!("skipped: no C compiler: {error}");
                None
            }
        }
    };
    SHIM.get_or_init(compile).as_deref()
}

fn temporary() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
