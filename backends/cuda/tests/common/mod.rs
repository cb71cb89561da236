//! The devices of the tests: the fake driver, compiled from C on the spot, and a real GPU where there is one.
#![allow(dead_code, reason = "each test file uses a part")]

use halite_cuda::{CudaBackend, Libraries};
use halite_hal::driver::Backend as _;
use halite_hal::{
    Access, ArgType, BufferSlice, DType, Device, Error, Kernel, KernelSource, MemoryKind, Result, Signature,
    Stream, as_bytes, from_bytes,
};
use libloading::Library;
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a test waits for another thread before it calls that a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The kernels of the tests. The fake driver knows them by name.
pub(crate) const SOURCE: &str = r#"
extern "C" __global__ void twice(const float *x, float *out, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = 2 * x[i];
}
extern "C" __global__ void increment(unsigned *x, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i]++;
}
extern "C" __global__ void await_flag(volatile unsigned *flag) { while (*flag == 0) {} }
extern "C" __global__ void stop() { asm("trap;"); }
extern "C" __global__ void scalars(double *out, int a, unsigned b, long long c, unsigned long long d, float e, double f) {
    out[0] = a; out[1] = b; out[2] = c; out[3] = d; out[4] = e; out[5] = f;
}
extern "C" __global__ void shared_bytes(unsigned *out) {
    extern __shared__ unsigned memory[];
    unsigned bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    memory[bytes / 4 - 1] = bytes;
    *out = memory[bytes / 4 - 1];
}
extern "C" __global__ void __launch_bounds__(64) greedy() {}
"#;

pub(crate) const F32_IN: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::Read };
pub(crate) const F32_OUT: ArgType = ArgType::Buffer { dtype: DType::F32, access: Access::Write };
pub(crate) const U32_BOTH: ArgType = ArgType::Buffer { dtype: DType::U32, access: Access::ReadWrite };
pub(crate) const U32: ArgType = ArgType::Scalar(DType::U32);

/// A copy of the fake driver, with counters of its own.
pub(crate) struct Fake {
    path: PathBuf,
    folder: PathBuf,
    library: Library,
}

impl Fake {
    /// `None`, with a printed message, where there is no C compiler.
    pub(crate) fn new(defines: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let compiled = compile(defines)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("halite-cuda-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("libfake.so");
        std::fs::copy(compiled, &path).unwrap();
        // SAFETY: the library's initialisers do nothing.
        let library = unsafe { Library::new(&path) }.unwrap();
        Some(Self { path, folder, library })
    }

    pub(crate) fn libraries(&self) -> Libraries {
        let path = Some(self.path.clone());
        Libraries { driver: path.clone(), nvrtc: path.clone(), cublaslt: path }
    }

    pub(crate) fn backend(&self) -> CudaBackend {
        CudaBackend::new().with_libraries(self.libraries()).with_cache_folder(self.cache())
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    pub(crate) fn open(&self) -> Device {
        self.backend().open(0).unwrap()
    }

    /// Calls of a function, or live objects of a kind.
    pub(crate) fn count(&self, name: &str) -> i64 {
        let name = CString::new(name).unwrap();
        // SAFETY: the function has this type (`tests/fake/driver.c`).
        unsafe {
            let count =
                self.library.get::<unsafe extern "C" fn(*const std::ffi::c_char) -> i64>("fake_counter");
            count.unwrap()(name.as_ptr())
        }
    }

    /// After `skip` more calls, the next one of a function answers with `code`.
    pub(crate) fn fail(&self, name: &str, code: i32, skip: i32) {
        let name = CString::new(name).unwrap();
        // SAFETY: as above.
        unsafe {
            let fail =
                self.library.get::<unsafe extern "C" fn(*const std::ffi::c_char, i32, i32)>("fake_fail");
            fail.unwrap()(name.as_ptr(), code, skip);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Compiles the fake driver, once for each state of its source and set of definitions.
fn compile(defines: &[&str]) -> Option<PathBuf> {
    static LOCK: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if cfg!(windows) {
        println!("skipped: the fake driver is compiled with the options of a Unix compiler");
        return None;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
    let files =
        ["fake.h", "driver.c", "kernels.c", "graph.c", "nvrtc.c", "cublaslt.c"].map(|file| folder.join(file));
    let mut hash = DefaultHasher::new();
    defines.hash(&mut hash);
    files.iter().for_each(|file| std::fs::read(file).unwrap().hash(&mut hash));
    let output = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-{:016x}.so", hash.finish()));
    if output.exists() {
        return Some(output);
    }
    // Beside the place, and moved there: the tests of several files run at once.
    let beside = output.with_extension(format!("{}.part", std::process::id()));
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-Wall", "-Wextra", "-O1", "-g", "-shared", "-fPIC", "-pthread"]);
    command.args(defines.iter().map(|define| format!("-D{define}"))).arg("-o").arg(&beside);
    match command.args(&files[1..]).arg("-lm").output() {
        Ok(result) => {
            assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
            std::fs::rename(beside, &output).unwrap();
            Some(output)
        }
        Err(error) => {
            println!("skipped: no C compiler: {error}");
            None
        }
    }
}

/// The first real GPU, or a printed reason; its absence is a failure with `HALITE_REQUIRE_CUDA=1`.
pub(crate) fn real() -> Option<Device> {
    static ABSENCE: OnceLock<Option<Error>> = OnceLock::new();
    if let Some(Some(reason)) = ABSENCE.get() {
        println!("skipped: {}", reason.message());
        return None;
    }
    match CudaBackend::new().open(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("HALITE_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "HALITE_REQUIRE_CUDA=1: {error}");
            println!("skipped: {}", error.message());
            let _ = ABSENCE.set(Some(error));
            None
        }
    }
}

/// Runs a test on the fake driver, on one that does not tell the parameters of kernels, and on a real GPU.
pub(crate) fn each_device(test: impl Fn(&Device)) {
    for defines in [&[][..], &["OLD_DRIVER", "VERSION=11040"]] {
        if let Some(fake) = Fake::new(defines) {
            test(&fake.open());
            wait_until("everything is given back", || {
                ["memory", "stream", "event", "module", "graph", "context", "blas", "descriptor"]
                    .iter()
                    .all(|kind| fake.count(kind) == 0)
            });
        }
    }
    if let Some(device) = real() {
        test(&device);
    }
}

/// Waits for other threads to make something true.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "not so after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A kernel of [`SOURCE`] with 32 threads a workgroup.
pub(crate) fn load(device: &Device, entry: &str, args: Vec<ArgType>) -> Result<Kernel> {
    device.load(&text(SOURCE, entry, "", [32, 1, 1], args))
}

pub(crate) fn text(
    source: &str,
    entry: &str,
    options: &str,
    workgroup: [u32; 3],
    args: Vec<ArgType>,
) -> KernelSource {
    KernelSource::Text {
        language: "cuda-c",
        source: source.into(),
        entry: entry.into(),
        options: options.into(),
        workgroup,
        signature: Signature::new(args),
        requires: Vec::new(),
    }
}

pub(crate) fn increment(device: &Device) -> Kernel {
    load(device, "increment", vec![U32_BOTH, U32]).unwrap()
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

pub(crate) fn upload_u32(device: &Device, stream: &Stream, values: &[u32]) -> BufferSlice {
    upload(device, stream, as_bytes(values))
}

pub(crate) fn download_u32(stream: &Stream, slice: &BufferSlice) -> Vec<u32> {
    from_bytes(&download(stream, slice))
}

/// Gates of one device. They are made before anything blocks, since loading and pinning may wait for the device.
pub(crate) struct Gates {
    kernel: Kernel,
    flags: BufferSlice,
    used: AtomicU32,
}

/// Keeps a stream from going on until it is opened.
pub(crate) struct Gate {
    flag: BufferSlice,
}

impl Gates {
    pub(crate) fn new(device: &Device) -> Self {
        let kernel = device.load(&text(SOURCE, "await_flag", "", [1, 1, 1], vec![U32_BOTH])).unwrap();
        let flags = device.allocate(1024, MemoryKind::HostVisible).unwrap().all();
        let gates = Self { kernel, flags, used: AtomicU32::new(0) };
        // Once through, so that everything is in place.
        let stream = device.create_stream().unwrap();
        gates.close(&stream).open();
        stream.synchronize().unwrap();
        gates
    }

    pub(crate) fn close(&self, stream: &Stream) -> Gate {
        let number = self.used.fetch_add(1, Ordering::Relaxed);
        let gate = Gate { flag: self.flags.slice(u64::from(number) * 16, 4).unwrap() };
        gate.set(0);
        stream.launch(&self.kernel, [1, 1, 1], &[gate.flag.clone().into()]).unwrap();
        gate
    }
}

impl Gate {
    pub(crate) fn open(self) {
        self.set(1);
    }

    fn set(&self, value: u32) {
        let base = self.flag.buffer().host_pointer().unwrap();
        // SAFETY: the offset lies inside the buffer.
        let pointer = unsafe { base.as_ptr().add(self.flag.offset() as usize) }.cast::<u32>();
        // SAFETY: four aligned bytes of host memory, which the kernel only reads, over and over.
        unsafe { AtomicU32::from_ptr(pointer) }.store(value, Ordering::Release);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // A test that fails must not hang.
        self.set(1);
    }
}
