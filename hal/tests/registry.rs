//! Finding and opening devices: what a registry says about what is not there, and how layers nest.

use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::null::{NullBackend, NullConfig};
use halite_hal::{
    Absence, Arg, Buffer, BufferSlice, Device, DeviceId, DeviceInfo, Error, ErrorKind, Event, Health, Kernel,
    KernelSource, Layer, MemoryInfo, MemoryKind, Registry, Result, Stream, select_layers,
};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A backend whose driver is not installed.
struct Missing;

impl driver::Backend for Missing {
    fn name(&self) -> &str {
        "missing"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        Err(Error::unavailable("libmissing.so was not found; install the driver"))
    }

    fn open(&self, _index: u32) -> Result<Device> {
        Err(Error::unavailable("libmissing.so was not found; install the driver"))
    }
}

/// A driver that answers, but lists nothing.
struct Deviceless;

impl driver::Backend for Deviceless {
    fn name(&self) -> &str {
        "deviceless"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        Ok(Vec::new())
    }

    fn open(&self, _index: u32) -> Result<Device> {
        Err(Error::unavailable("there is no device"))
    }
}

fn null(devices: u32) -> Arc<NullBackend> {
    Arc::new(NullBackend::new(NullConfig { devices, ..NullConfig::default() }))
}

fn registry(backends: Vec<Arc<dyn driver::Backend>>) -> Registry {
    let mut registry = Registry::new();
    backends.into_iter().for_each(|backend| registry.register(backend).unwrap());
    registry
}

#[track_caller]
fn assert_unavailable(result: Result<Device>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "'{part}' is missing in '{error}'");
    }
}

#[test]
fn probing_lists_devices_in_order_and_says_why_backends_are_absent() {
    let registry = registry(vec![Arc::new(Missing), null(2), Arc::new(Deviceless)]);
    assert_eq!(registry.backends().collect::<Vec<_>>(), ["missing", "null", "deviceless"]);
    let discovery = registry.probe();
    let ids: Vec<_> = discovery.devices.iter().map(|info| info.id.to_string()).collect();
    assert_eq!(ids, ["null:0", "null:1"]);
    let absence = |backend: &str, reason: &str| Absence { backend: backend.into(), reason: reason.into() };
    assert_eq!(
        discovery.absent,
        [
            absence("missing", "libmissing.so was not found; install the driver"),
            absence("deviceless", "the driver lists no device"),
        ]
    );
}

#[test]
fn opening_names_what_is_there_instead() {
    let registry = registry(vec![Arc::new(Missing), null(2), Arc::new(Deviceless)]);
    assert_eq!(registry.open("null").unwrap().id(), &DeviceId::new("null", 0));
    assert_eq!(registry.open("null:1").unwrap().id(), &DeviceId::new("null", 1));
    assert_unavailable(registry.open("tpu:0"), &["no backend 'tpu'", "use one of null:0, null:1"]);
    assert_unavailable(registry.open("null:2"), &["no device 'null:2'", "use one of null:0, null:1"]);
    assert_unavailable(registry.open("missing"), &["missing:0", "libmissing.so was not found", "install"]);
    assert_unavailable(registry.open("deviceless:0"), &["no device 'deviceless:0'"]);
    for nonsense in ["", "null:", "null:one", ":0"] {
        let error = registry.open(nonsense).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{nonsense}: {error}");
    }
}

#[test]
fn without_any_device_every_reason_is_told() {
    let registry = registry(vec![Arc::new(Missing), null(0)]);
    assert_unavailable(registry.open_best(|_| 0), &["missing: libmissing.so", "null: ", "0 null devices"]);
    assert_unavailable(registry.open("tpu"), &["no device was found"]);
    assert_unavailable(Registry::new().open("null"), &["no backend 'null'"]);
    assert!(Registry::new().open_best(|_| 0).is_err());
}

#[test]
fn the_best_device_is_the_first_of_equals() {
    let registry = registry(vec![null(3)]);
    assert_eq!(registry.open_best(|_| 7).unwrap().id().index, 0);
    assert_eq!(registry.open_best(|info| u64::from(info.id.index)).unwrap().id().index, 2);
}

#[test]
fn a_backends_name_is_registered_once() {
    let mut registry = registry(vec![null(1)]);
    let error = registry.register(null(2)).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("'null'"), "{error}");
    assert_eq!(registry.probe().devices.len(), 1);
}

#[test]
fn layers_are_chosen_by_name_in_order() {
    let log = Log::default();
    let known: Vec<Arc<dyn Layer>> =
        vec![Arc::new(Counting::new("a", &log)), Arc::new(Counting::new("b", &log))];
    let chosen = |list| {
        select_layers(list, &known)
            .map(|layers| layers.iter().map(|layer| layer.name().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(chosen("").unwrap(), [""; 0]);
    assert_eq!(chosen("b, a,").unwrap(), ["b", "a"]);
    let error = chosen("a,c").unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("'c'; known layers: a, b"), "{error}");
    let error = chosen("b, a: fast").unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
    assert!(error.message().contains("'a' takes no settings, got 'fast'"), "{error}");
    let error = select_layers("a", &[]).err().expect("there is no layer a");
    assert!(error.message().contains("none in this build"), "{error}");
}

#[test]
fn later_layers_lie_outside_of_earlier_ones_and_see_every_call() {
    let log = Log::default();
    let mut registry = registry(vec![null(1)]);
    registry.add_layer(Arc::new(Counting::new("inner", &log)));
    registry.add_layer(Arc::new(Counting::new("outer", &log)));
    let device = registry.open("null").unwrap();
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(4, MemoryKind::Device).unwrap();
    stream.fill(&buffer.all(), &[0]).unwrap();
    let event = stream.record().unwrap();
    stream.wait(&event).unwrap();
    let calls = ["create_stream", "allocate", "fill", "record", "wait"];
    let expected: Vec<_> = calls.iter().flat_map(|call| [("outer", *call), ("inner", *call)]).collect();
    assert_eq!(*log.lock().unwrap(), expected);
    assert_eq!(device.id(), &DeviceId::new("null", 0), "a layered device keeps its name");
    // What the handles refuse reaches no layer.
    assert!(stream.fill(&buffer.all(), &[]).is_err());
    assert_eq!(log.lock().unwrap().len(), expected.len());
}

#[test]
fn a_layer_that_cannot_wrap_fails_the_opening() {
    struct Refusing;
    impl Layer for Refusing {
        fn name(&self) -> &str {
            "refusing"
        }

        fn wrap(&self, _inner: Device) -> Result<Device> {
            Err(Error::unavailable("the trace file cannot be written"))
        }
    }
    let mut registry = registry(vec![null(1)]);
    registry.add_layer(Arc::new(Refusing));
    assert_unavailable(registry.open("null"), &["trace file"]);
}

type Log = Arc<Mutex<Vec<(&'static str, &'static str)>>>;

/// Notes every call, then passes it on.
#[derive(Clone)]
struct Counting {
    name: &'static str,
    log: Log,
}

impl Counting {
    fn new(name: &'static str, log: &Log) -> Self {
        Self { name, log: log.clone() }
    }

    fn note(&self, call: &'static str) {
        self.log.lock().unwrap().push((self.name, call));
    }
}

impl Layer for Counting {
    fn name(&self) -> &str {
        self.name
    }

    fn wrap(&self, inner: Device) -> Result<Device> {
        Ok(Device::new(Arc::new(CountingDevice { layer: self.clone(), inner })))
    }
}

struct CountingDevice {
    layer: Counting,
    inner: Device,
}

impl driver::Device for CountingDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.inner.memory()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.layer.note("allocate");
        self.inner.allocate(len_bytes, kind)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.layer.note("create_stream");
        Ok(Box::new(CountingStream {
            layer: self.layer.clone(),
            inner: self.inner.driver().create_stream()?,
        }))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.layer.note("load");
        self.inner.load(source)
    }
}

struct CountingStream {
    layer: Counting,
    inner: Box<dyn driver::Stream>,
}

impl driver::Stream for CountingStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        self.layer.note("write");
        self.inner.write(dst, src)
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.layer.note("read_blocking");
        self.inner.read_blocking(src, dst)
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.layer.note("read");
        self.inner.read(src, dst)
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.layer.note("copy");
        self.inner.copy(dst, src)
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.layer.note("fill");
        self.inner.fill(dst, pattern)
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.layer.note("launch");
        self.inner.launch(kernel, grid, args)
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        self.layer.note("record");
        self.inner.record()
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.layer.note("wait");
        self.inner.wait(event)
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.layer.note("synchronize");
        self.inner.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.layer.note("reset");
        self.inner.reset()
    }
}

/// A pool stands above the layers: its segments and events pass through them.
#[test]
fn a_pool_over_a_layered_device_goes_through_its_layers() {
    use halite_hal::{Pool, PoolConfig};
    let log = Log::default();
    let mut registry = registry(vec![null(1)]);
    registry.add_layer(Arc::new(Counting::new("layer", &log)));
    let device = registry.open("null").unwrap();
    let streams: [Stream; 2] = [device.create_stream().unwrap(), device.create_stream().unwrap()];
    let pool = Pool::new(device, MemoryKind::Device, PoolConfig::default());
    let memory = pool.allocate(&streams[0], 100).unwrap();
    memory.record_use(&streams[1]);
    drop(memory);
    let calls: Vec<_> = log.lock().unwrap().iter().map(|(_, call)| *call).collect();
    assert_eq!(calls, ["create_stream", "create_stream", "allocate", "record"]);
}
