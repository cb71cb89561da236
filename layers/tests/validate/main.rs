//! The layer `validate`: each kind of misuse is found, refused or reported, and clean programs give no finding.

#![allow(missing_docs)]

mod clean;
mod peers;
mod refused;
mod reported;
mod zones;

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::driver::Backend;
use halite_hal::null::{NullBackend, NullConfig, NullDevice};
use halite_hal::{
    Access, Arg, ArgType, Buffer, DType, Device, Kernel, KernelSource, Layer, MemoryKind, NativeKernel,
    Signature, Stream, Workgroup,
};
use halite_layers::validate::{Finding, FindingKind, Findings, Validate};

use std::sync::{Arc, Condvar, Mutex};

/// A device inside of the layer, two streams, and what was found.
struct Bench {
    layer: Validate,
    findings: Findings,
    device: Device,
    streams: [Stream; 2],
}

impl Bench {
    fn around(device: Device) -> Self {
        Self::with(Validate::collecting(), device)
    }

    fn with((layer, findings): (Validate, Findings), device: Device) -> Self {
        let device = layer.wrap(device).unwrap();
        let streams = [device.create_stream().unwrap(), device.create_stream().unwrap()];
        Self { layer, findings, device, streams }
    }

    fn cpu() -> Self {
        Self::around(cpu_device(None))
    }

    fn strict() -> Self {
        let (layer, findings) = Validate::collecting();
        Self::with((layer.strict(), findings), cpu_device(None))
    }

    fn null(config: NullConfig) -> (NullDevice, Self) {
        let null = NullBackend::new(config).open_null(0).unwrap();
        let bench = Self::around(null.device());
        (null, bench)
    }

    fn buffer(&self, len: u64) -> Buffer {
        self.device.allocate(len, MemoryKind::Device).unwrap()
    }

    /// A buffer of zeros, on which nothing is under way.
    fn written(&self, len: u64) -> Buffer {
        let buffer = self.buffer(len);
        self.streams[0].fill(&buffer.all(), &[0]).unwrap();
        self.streams[0].synchronize().unwrap();
        buffer
    }

    fn kernel(
        &self,
        name: &str,
        args: &[ArgType],
        run: impl Fn(&mut Workgroup<'_>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Kernel {
        let kernel = NativeKernel::new(name, Signature::new(args.to_vec()), run);
        self.device.load(&KernelSource::Native(kernel)).unwrap()
    }

    /// `out[i] = input[i] + 1`, bytes.
    fn increment(&self) -> Kernel {
        self.kernel("increment", &[bytes(Access::Read), bytes(Access::Write)], |group| {
            let input = group.read::<u8>(0)?;
            let out = group.write_all::<u8>(1)?;
            out.iter_mut().zip(input).for_each(|(out, input)| *out = input.wrapping_add(1));
            Ok(())
        })
    }

    /// `out[i] += 1`, bytes.
    fn increment_in_place(&self) -> Kernel {
        self.kernel("increment_in_place", &[bytes(Access::ReadWrite)], |group| {
            group.write_all::<u8>(0)?.iter_mut().for_each(|out| *out = out.wrapping_add(1));
            Ok(())
        })
    }

    /// A kernel that holds its stream until the gate opens.
    fn close_gate(&self, stream: &Stream) -> Gate {
        let gate = Gate::default();
        let inside = gate.clone();
        let kernel = self.kernel("gate", &[], move |_| {
            let (is_open, changed) = &*inside.0;
            let mut is_open = is_open.lock().unwrap();
            while !*is_open {
                is_open = changed.wait(is_open).unwrap();
            }
            Ok(())
        });
        stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
        gate
    }

    /// The only finding, which is of this kind and whose text has these parts.
    #[track_caller]
    fn found(&self, kind: FindingKind, parts: &[&str]) -> Finding {
        let mut findings = self.findings.take();
        assert_eq!(findings.len(), 1, "{}", shown(&findings));
        let finding = findings.remove(0);
        assert_eq!(finding.kind, kind, "{finding}");
        let text = finding.to_string();
        for part in parts {
            assert!(text.contains(part), "'{part}' is missing in\n{text}");
        }
        assert!(!finding.remedy.is_empty() && !finding.object.is_empty() && !finding.place.is_empty());
        finding
    }

    #[track_caller]
    fn nothing_found(&self) {
        self.layer.check_red_zones();
        let findings = self.findings.take();
        assert!(findings.is_empty(), "{}", shown(&findings));
    }
}

#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(self) {
        let (is_open, changed) = &*self.0;
        *is_open.lock().unwrap() = true;
        changed.notify_all();
    }
}

fn shown(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

fn cpu_device(memory_limit_bytes: Option<u64>) -> Device {
    CpuBackend::new(CpuConfig { threads: Some(2), memory_limit_bytes }).open(0).unwrap()
}

fn bytes(access: Access) -> ArgType {
    ArgType::Buffer { dtype: DType::U8, access }
}

fn arg(buffer: &Buffer) -> Arg {
    Arg::Buffer(buffer.all())
}
