//! The plugin interface: tables of other sizes and versions, and structures that are larger or smaller than expected.
//!
//! Tables are copies of the plugin's own with changes, opened by the loader. Structures are passed to the plugin's
//! functions directly.

mod raw;
mod structs;

use super::Tests;
use crate::context::{Context, holds};
use crate::outcome::{Outcome, failed};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::plugin::{self, TableChange};
use halite_hal::{DType, Device, ErrorKind, KernelSource, MemoryKind};
use std::time::Duration;

/// Functions that every plugin has.
const TIER_1: [&str; 20] = [
    "device_count",
    "device_info",
    "device_open",
    "device_close",
    "memory_alloc",
    "memory_free",
    "memory_info",
    "stream_create",
    "stream_destroy",
    "stream_write",
    "stream_read",
    "stream_copy",
    "stream_fill",
    "stream_wait_event",
    "stream_synchronize",
    "event_create",
    "event_destroy",
    "event_record",
    "event_wait",
    "event_query",
];
/// Functions that a plugin may lack.
const OPTIONAL: [&str; 10] = [
    "event_elapsed",
    "stream_reset",
    "device_health",
    "device_counters",
    "get_extension",
    "kernel_info",
    "kernel_argument",
    "memory_import",
    "peer_enable",
    "stream_copy_peer",
];
const BUILTINS: [&str; 4] = ["builtin_validate", "builtin_prepare", "builtin_release", "builtin_enqueue"];
const PROGRAMS: [&str; 4] = ["program_load", "program_unload", "kernel_find", "kernel_launch"];

pub(super) fn tests(tests: &mut Tests) {
    sizes(tests);
    versions(tests);
    functions(tests);
    features(tests);
    structs::tests(tests);
}

/// Whether a device does what every device does.
fn works(device: &Device) -> Outcome {
    let [first, second] = [device.create_stream()?, device.create_stream()?];
    let bytes: Vec<u8> = (0..200).collect();
    let (a, b) =
        (device.allocate(200, MemoryKind::Device)?.all(), device.allocate(200, MemoryKind::Device)?.all());
    first.write(&a, &bytes[..])?;
    first.fill(&a.slice(0, 4)?, &[9])?;
    second.wait(&first.record()?)?;
    second.copy(&b, &a)?;
    let mut expected = bytes;
    expected[..4].fill(9);
    holds(&second, &b, &expected, "the buffer")?;
    second.synchronize_timeout(Duration::from_secs(10))?;
    Ok(first.reset()?)
}

fn opens(context: &Context, changes: &[TableChange]) -> Result<Device, crate::Stop> {
    let device = context.plugin()?.open_changed(changes)?;
    works(&device)?;
    Ok(device)
}

/// Takes away the features whose functions lie behind a cut.
fn without_tiers() -> TableChange {
    TableChange::ClearFeatures(plugin::FEATURE_BUILTINS | plugin::FEATURE_PROGRAMS)
}

fn sizes(tests: &mut Tests) {
    tests.add("a-copy-of-the-table", "the plugin works through a copy of its table", |context| {
        opens(context, &[]).map(drop)
    });
    for more in [8u64, 64, 4096] {
        tests.add(
            format!("a-table-longer-by-{more}"),
            "a longer table, of a later version, works",
            move |context| {
                let size =
                    context.plugin()?.table().struct_size.max(size_of::<plugin::Plugin>() as u64) + more;
                opens(context, &[TableChange::Size(size), TableChange::Minor(99)]).map(drop)
            },
        );
    }
    for name in
        ["event_query", "event_elapsed", "stream_reset", "device_health", "device_counters", "get_extension"]
    {
        tests.add(
            format!("a-table-that-ends-at-{}", name.replace('_', "-")),
            "a shorter table, of a plugin of tier 1, works",
            move |context| {
                let device = opens(context, &[without_tiers(), TableChange::CutBehind(name)])?;
                ensure_eq!(device.info().kernel_formats, Vec::<String>::new(), "formats of kernels");
                Ok(())
            },
        );
    }
    for (name, size) in
        [("no-bytes", 0u64), ("a-size-alone", 8), ("absurdly-many-bytes", 1 << 40), ("all-bytes", u64::MAX)]
    {
        tests.add(format!("a-table-of-{name}"), "a table of an absurd size is refused", move |context| {
            refused(context, &[TableChange::Size(size)], "").map(drop)
        });
    }
    for name in ["device_count", "stream_write", "event_query"] {
        tests.add(
            format!("a-table-cut-before-{}", name.replace('_', "-")),
            "a table that is too short for what every plugin has is refused, and the function is named",
            move |context| refused(context, &[without_tiers(), TableChange::CutBefore(name)], name),
        );
    }
}

/// Refused as a breach of the interface, by a message that names this.
fn refused(context: &Context, changes: &[TableChange], named: &str) -> Outcome {
    let result = context.plugin()?.open_changed(changes);
    let error = ensure_kind!(result, ErrorKind::BadFormat, "opening through such a table");
    ensure!(error.message().contains(named), "the message does not name {named}: {error}");
    Ok(())
}

fn versions(tests: &mut Tests) {
    for (name, major) in [("zero", 0u32), ("the-next", plugin::ABI_MAJOR + 1), ("the-last", u32::MAX)] {
        tests.add(
            format!("major-version-{name}"),
            "another major version is a mismatch that names both",
            move |context| {
                let result = context.plugin()?.open_changed(&[TableChange::Major(major)]);
                let error =
                    ensure_kind!(result, ErrorKind::AbiMismatch, "opening with major version {major}");
                for version in [major, plugin::ABI_MAJOR] {
                    ensure!(
                        error.message().contains(&version.to_string()),
                        "the message does not name {version}: {error}"
                    );
                }
                Ok(())
            },
        );
    }
    for (name, minor) in [("zero", 0u32), ("a-later-one", 7), ("the-last", u32::MAX)] {
        tests.add(format!("minor-version-{name}"), "every minor version works", move |context| {
            opens(context, &[TableChange::Minor(minor)]).map(drop)
        });
    }
}

fn functions(tests: &mut Tests) {
    for name in OPTIONAL {
        tests.add(
            format!("without-{}", name.replace('_', "-")),
            "a plugin without this function works, and what depends on it is unsupported",
            move |context| {
                let device = opens(context, &[TableChange::Remove(name)])?;
                let stream = device.create_stream()?;
                let (first, second) = (stream.record()?, stream.record()?);
                stream.synchronize()?;
                if name == "event_elapsed" {
                    ensure_kind!(
                        second.elapsed_since(&first),
                        ErrorKind::Unsupported,
                        "the time between two events"
                    );
                }
                Ok(())
            },
        );
    }
    for name in TIER_1 {
        tests.add(
            format!("requires-{}", name.replace('_', "-")),
            "a plugin that lacks what every plugin has is refused, and the function is named",
            move |context| refused(context, &[TableChange::Remove(name)], name),
        );
    }
    for (names, feature, format) in
        [(BUILTINS, plugin::FEATURE_BUILTINS, "builtin"), (PROGRAMS, plugin::FEATURE_PROGRAMS, "program")]
    {
        for name in names {
            tests.add(
                format!("requires-{}", name.replace('_', "-")),
                format!(
                    "a plugin that claims {format}s and lacks a function for them is refused by its name"
                ),
                move |context| {
                    // A plugin without the tier lacks them all, and any of them may be named.
                    let has_tier = context.plugin()?.table().features & feature != 0;
                    let named = if has_tier { name } else { "lacks the required function" };
                    refused(context, &[TableChange::SetFeatures(feature), TableChange::Remove(name)], named)
                },
            );
        }
    }
}

fn features(tests: &mut Tests) {
    for bit in [2u32, 17, 63] {
        tests.add(
            format!("unknown-feature-{bit}"),
            "feature bits that this version does not know are ignored",
            move |context| {
                let device = opens(context, &[TableChange::SetFeatures(1 << bit)])?;
                ensure_eq!(device.info().kernel_formats, context.info().kernel_formats, "formats of kernels");
                Ok(())
            },
        );
    }
    tests.add("every-unknown-feature", "all unknown feature bits at once are ignored", |context| {
        let known = plugin::FEATURE_BUILTINS | plugin::FEATURE_PROGRAMS;
        opens(context, &[TableChange::SetFeatures(!known)]).map(drop)
    });
    tests.add("without-built-ins", "a plugin that does not claim built-ins is asked for none", |context| {
        let device = opens(context, &[TableChange::ClearFeatures(plugin::FEATURE_BUILTINS)])?;
        let op = BuiltinOp::new(BuiltinKind::Copy, vec![OperandDesc::contiguous(DType::F32, &[4]); 2])?;
        ensure_kind!(device.load(&KernelSource::Builtin(op)), ErrorKind::Unsupported, "loading a built-in");
        Ok(())
    });
    tests.add("without-programs", "a plugin that does not claim programs is given none", |context| {
        let device = opens(context, &[TableChange::ClearFeatures(plugin::FEATURE_PROGRAMS)])?;
        let others: Vec<_> =
            device.info().kernel_formats.iter().filter(|format| *format != "builtin").collect();
        if !others.is_empty() {
            return Err(failed(format!("it still takes {others:?}")));
        }
        Ok(())
    });
}
