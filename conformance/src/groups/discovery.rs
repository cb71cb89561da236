//! Finding and opening: what is listed is there, what is absent says why, and claims are plausible.

use super::Tests;
use crate::context::{Context, holds};
use crate::outcome::Outcome;
use halite_hal::{DeviceId, DeviceInfo, ErrorKind, Health, MemoryKind};
use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::thread;

pub(super) fn tests(tests: &mut Tests) {
    probing(tests);
    absence(tests);
    opening(tests);
    claims(tests);
}

/// What a probe says of the device.
fn probed(context: &Context) -> Result<DeviceInfo, crate::Stop> {
    let id = context.target().id();
    let found = context.target().registry().probe();
    let info = found.devices.into_iter().find(|info| info.id == *id);
    info.ok_or_else(|| crate::outcome::failed(format!("{id} is not among the devices that are listed")))
}

fn probing(tests: &mut Tests) {
    tests.add("device-is-listed", "a probe lists the device while it is open", |context| {
        probed(context).map(drop)
    });
    tests.add("probes-agree", "probing again gives the same devices", |context| {
        let registry = context.target().registry();
        let (first, second) = (registry.probe(), registry.probe());
        ensure_eq!(second.devices, first.devices, "the devices of the second probe");
        ensure_eq!(second.absent, first.absent, "the absent backends of the second probe");
        Ok(())
    });
    tests.add("probes-of-many-threads-agree", "eight threads may probe at once", |context| {
        let registry = context.target().registry();
        let expected = registry.probe().devices;
        let probes: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| registry.probe().devices)).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        for probe in probes {
            ensure!(
                probe.is_ok_and(|devices| devices == expected),
                "a probe of another thread differs or panics"
            );
        }
        Ok(())
    });
    tests.add("indices-count-from-zero", "devices of a backend are numbered in order, from 0", |context| {
        let backend = &context.target().id().backend;
        let found = context.target().registry().probe();
        let own = found.devices.iter().filter(|info| info.id.backend == *backend);
        for (index, info) in own.enumerate() {
            ensure_eq!(info.id.index as usize, index, "the index of the device in place {index}");
        }
        Ok(())
    });
    tests.add("names-parse-back", "the text of a device's name leads back to it", |context| {
        let id = context.target().id();
        ensure_eq!(id.to_string().parse::<DeviceId>()?, *id, "the name that was read");
        Ok(())
    });
    tests.add("a-name-without-index-is-the-first", "a backend's name alone opens its device 0", |context| {
        let backend = &context.target().id().backend;
        let device = context.target().registry().open(backend)?;
        ensure_eq!(*device.id(), DeviceId::new(backend.clone(), 0), "the device");
        Ok(())
    });
}

fn absence(tests: &mut Tests) {
    tests.add(
        "absent-index-is-unavailable",
        "an index beyond the devices is unavailable, and those there are named",
        |context| {
            let id = DeviceId::new(context.target().id().backend.clone(), u32::MAX);
            let result = context.target().registry().open_id(&id);
            let error = ensure_kind!(result, ErrorKind::Unavailable, "opening {id}");
            let own = context.target().id().to_string();
            ensure!(error.message().contains(&own), "the message names no device that is there: {error}");
            Ok(())
        },
    );
    tests.add(
        "unknown-backend-is-unavailable",
        "a backend that nobody has is unavailable, by name",
        |context| {
            let error = ensure_kind!(
                context.target().registry().open("nobody:0"),
                ErrorKind::Unavailable,
                "opening nobody:0"
            );
            ensure!(error.message().contains("nobody"), "the message does not name the backend: {error}");
            Ok(())
        },
    );
    tests.add("malformed-names-are-invalid", "what names no device is an invalid argument", |context| {
        for name in ["", ":0", "x:", "x:-1", "x:one", "x:1:2", "x:4294967296"] {
            let result = context.target().registry().open(name);
            ensure_kind!(result, ErrorKind::InvalidArgument, "opening '{name}'");
        }
        Ok(())
    });
    tests.add(
        "absent-backends-give-a-reason",
        "a backend without devices says what was looked for",
        |context| {
            for absence in context.target().registry().probe().absent {
                let (backend, reason) = (&absence.backend, &absence.reason);
                ensure!(reason.len() >= 10, "the backend {backend} is absent because of '{reason}'");
            }
            Ok(())
        },
    );
}

fn opening(tests: &mut Tests) {
    tests.add("open-device-is-as-listed", "an open device is what the probe said", |context| {
        let (listed, open) = (probed(context)?, context.info().clone());
        ensure_eq!(open, listed, "the open device's description");
        Ok(())
    });
    tests.add("description-never-changes", "a device's description stays while it works", |context| {
        let before = context.info().clone();
        let stream = context.stream()?;
        let buffer = context.upload(&stream, &[1; 4096])?;
        holds(&stream, &buffer, &[1; 4096], "the buffer")?;
        ensure_eq!(*context.info(), before, "the description afterwards");
        Ok(())
    });
    tests.add("open-device-is-healthy", "an opened device answers", |context| {
        ensure_eq!(context.open()?.health(), Health::Ok, "the health");
        Ok(())
    });
    tests.add("opens-again-and-again", "a device may be opened, used and closed many times", |context| {
        for round in 0..10u8 {
            let device = context.open()?;
            let stream = device.create_stream()?;
            let buffer = device.allocate(1000, MemoryKind::Device)?.all();
            stream.fill(&buffer, &[round])?;
            holds(&stream, &buffer, &[round; 1000], "the buffer")?;
        }
        Ok(())
    });
    tests.add("opens-in-many-threads", "four threads may open and use the device at once", |context| {
        let work = |value: u8| -> Outcome {
            let device = context.open()?;
            let stream = device.create_stream()?;
            let buffer = device.allocate(5000, MemoryKind::Device)?.all();
            stream.fill(&buffer, &[value])?;
            holds(&stream, &buffer, &[value; 5000], "the buffer")
        };
        super::in_threads(4, |index| work(index as u8))
    });
    tests.add("marks-tell-openings-apart", "an open device has a mark, a mere name has none", |context| {
        let (own, name) = (context.device().id(), context.target().id());
        ensure_eq!(own, name, "the name of the open device");
        ensure!(own.is_same_opening(own), "the device is of another opening than itself");
        ensure!(
            !own.is_same_opening(name),
            "the open device has no mark of its opening; make its id with opened()"
        );
        Ok(())
    });
    for order in ["device-first", "stream-first", "buffer-first", "event-first"] {
        tests.add(
            format!("handles-drop-{order}"),
            "handles may be dropped in any order, while work is under way",
            move |context| {
                let device = context.open()?;
                let stream = device.create_stream()?;
                let buffer = device.allocate(1 << 20, MemoryKind::Device)?.all();
                for value in 0..16u8 {
                    stream.fill(&buffer, &[value])?;
                }
                let event = stream.record()?;
                match order {
                    "device-first" => drop(device),
                    "stream-first" => drop(stream),
                    "buffer-first" => drop(buffer),
                    _ => drop(event),
                }
                Ok(())
            },
        );
    }
}

fn claims(tests: &mut Tests) {
    tests.add(
        "texts-are-readable",
        "name, vendor and version are one line each, and there is a name",
        |context| {
            let info = context.info();
            ensure!(!info.name.trim().is_empty(), "the device has no name");
            for text in [&info.name, &info.vendor, &info.driver_version] {
                ensure!(!text.contains(char::is_control), "{text:?} holds a control character");
            }
            Ok(())
        },
    );
    tests.add("memory-is-plausible", "there is memory, and an allocation fits it", |context| {
        let info = context.info();
        ensure!(info.memory_bytes > 0, "the memory has 0 bytes");
        let largest = info.limits.max_allocation_bytes;
        ensure!(largest > 0, "the largest allocation has 0 bytes");
        ensure!(
            largest <= info.memory_bytes,
            "the largest allocation has {largest} bytes, the memory {}",
            info.memory_bytes
        );
        Ok(())
    });
    tests.add("alignment-is-a-power-of-two", "the alignment of offsets is a power of two", |context| {
        let alignment = context.info().limits.offset_alignment_bytes;
        ensure!(alignment.is_power_of_two(), "it is {alignment}");
        Ok(())
    });
    tests.add(
        "limits-of-launches-are-plausible",
        "a launch may have a workgroup and four arguments",
        |context| {
            let limits = &context.info().limits;
            ensure!(
                limits.max_grid.iter().all(|axis| *axis >= 1),
                "the largest grid is {:?}",
                limits.max_grid
            );
            ensure!(
                limits.max_workgroup.iter().all(|axis| *axis >= 1),
                "the largest workgroup is {:?}",
                limits.max_workgroup
            );
            ensure!(limits.max_workgroup_threads >= 1, "a workgroup has no thread");
            ensure!(limits.max_args >= 4, "a launch takes {} arguments", limits.max_args);
            Ok(())
        },
    );
    tests.add("compute-units-are-plausible", "there is a compute unit", |context| {
        ensure!(context.info().compute_units >= 1, "there are none");
        Ok(())
    });
    tests.add(
        "lists-have-no-repeats",
        "element types, formats and features are listed once, and none is empty",
        |context| {
            let info = context.info();
            distinct(&info.dtypes, "element types")?;
            distinct(&info.kernel_formats, "kernel formats")?;
            distinct(&info.features, "features")?;
            let names = info.kernel_formats.iter().chain(&info.features);
            for name in names {
                ensure!(!name.is_empty() && !name.contains(char::is_whitespace), "'{name}' is no name");
            }
            Ok(())
        },
    );
    tests.add("element-types-are-there", "a device that takes kernels has element types", |context| {
        let info = context.info();
        ensure!(
            info.kernel_formats.is_empty() || !info.dtypes.is_empty(),
            "it takes {:?}, and no element type",
            info.kernel_formats
        );
        Ok(())
    });
    tests.add("memory-adds-up", "free and used memory lie within the whole", |context| {
        let memory = context.device().memory()?;
        ensure!(memory.total_bytes > 0, "there are 0 bytes in all");
        ensure!(
            memory.free_bytes <= memory.total_bytes,
            "{} of {} bytes are free",
            memory.free_bytes,
            memory.total_bytes
        );
        Ok(())
    });
}

fn distinct<T: Hash + Eq + Debug>(items: &[T], what: &str) -> Outcome {
    let set: HashSet<&T> = items.iter().collect();
    ensure_eq!(set.len(), items.len(), "distinct {what} among {items:?}");
    Ok(())
}
