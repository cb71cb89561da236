//! Compares this mirror with the header, as a C and a C++ compiler see it, and both with what each earlier version was.

use super::*;
use crate::{DType, ErrorKind};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) struct Struct {
    pub name: &'static str,
    pub rust_name: &'static str,
    pub size: usize,
    /// Name, offset and size.
    pub fields: Vec<(&'static str, usize, usize)>,
    /// Name and type in Rust.
    pub types: Vec<(&'static str, &'static str)>,
}

/// What version 1.0 was, and what each minor version since has appended, in numbers that depend on no source.
const VERSIONS: [&str; 2] = [include_str!("layout-1.0.txt"), include_str!("layout-1.1.txt")];

/// A line of [`VERSIONS`].
#[derive(Clone, Copy, Debug)]
enum Pinned {
    Struct { name: &'static str, size: usize },
    Field { of: &'static str, name: &'static str, offset: usize, size: usize },
    Constant { name: &'static str, value: i128 },
}

fn pinned() -> Vec<Pinned> {
    let mut of = "";
    let lines = VERSIONS.into_iter().flat_map(str::lines).filter(|line| !line.starts_with('#'));
    let parse = |line: &'static str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["struct", name, size] => {
            of = name;
            Pinned::Struct { name, size: size.parse().unwrap() }
        }
        ["constant", name, value] => Pinned::Constant { name, value: value.parse().unwrap() },
        [name, offset, size] => {
            Pinned::Field { of, name, offset: offset.parse().unwrap(), size: size.parse().unwrap() }
        }
        _ => panic!("'{line}' is no line of the layout"),
    };
    lines.map(parse).collect()
}

pub(crate) fn size_of_field<S, T>(_field: fn(&S) -> &T) -> usize {
    size_of::<T>()
}

/// Every constant of the header, with the mirror's value.
fn constants() -> Vec<(&'static str, i128)> {
    let mut constants: Vec<(&'static str, i128)> = vec![
        ("HALITE_ABI_MAJOR", ABI_MAJOR.into()),
        ("HALITE_ABI_MINOR", ABI_MINOR.into()),
        ("HALITE_STATUS_OK", STATUS_OK.into()),
        ("HALITE_STATUS_INVALID_ARGUMENT", STATUS_INVALID_ARGUMENT.into()),
        ("HALITE_STATUS_UNSUPPORTED", STATUS_UNSUPPORTED.into()),
        ("HALITE_STATUS_UNAVAILABLE", STATUS_UNAVAILABLE.into()),
        ("HALITE_STATUS_OUT_OF_MEMORY", STATUS_OUT_OF_MEMORY.into()),
        ("HALITE_STATUS_TOO_LARGE", STATUS_TOO_LARGE.into()),
        ("HALITE_STATUS_BUILD", STATUS_BUILD.into()),
        ("HALITE_STATUS_BAD_FORMAT", STATUS_BAD_FORMAT.into()),
        ("HALITE_STATUS_TIMEOUT", STATUS_TIMEOUT.into()),
        ("HALITE_STATUS_FAULT", STATUS_FAULT.into()),
        ("HALITE_STATUS_LINK", STATUS_LINK.into()),
        ("HALITE_STATUS_DEVICE_LOST", STATUS_DEVICE_LOST.into()),
        ("HALITE_STATUS_ABI_MISMATCH", STATUS_ABI_MISMATCH.into()),
        ("HALITE_STATUS_BACKEND", STATUS_BACKEND.into()),
        ("HALITE_MEMORY_DEVICE", MEMORY_DEVICE.into()),
        ("HALITE_MEMORY_HOST_VISIBLE", MEMORY_HOST_VISIBLE.into()),
        ("HALITE_MEMORY_PINNED", MEMORY_PINNED.into()),
        ("HALITE_COMPLETION_PENDING", COMPLETION_PENDING.into()),
        ("HALITE_COMPLETION_DONE", COMPLETION_DONE.into()),
        ("HALITE_COMPLETION_FAILED", COMPLETION_FAILED.into()),
        ("HALITE_NO_TIMEOUT", NO_TIMEOUT.into()),
        ("HALITE_DTYPE_ANY", DTYPE_ANY.into()),
        ("HALITE_ARGUMENT_BUFFER", ARGUMENT_BUFFER.into()),
        ("HALITE_ARGUMENT_SCALAR", ARGUMENT_SCALAR.into()),
        ("HALITE_ACCESS_READ", ACCESS_READ.into()),
        ("HALITE_ACCESS_WRITE", ACCESS_WRITE.into()),
        ("HALITE_FEATURE_BUILTINS", FEATURE_BUILTINS.into()),
        ("HALITE_FEATURE_PROGRAMS", FEATURE_PROGRAMS.into()),
    ];
    let dtypes = [
        ("HALITE_DTYPE_BOOL", DType::Bool),
        ("HALITE_DTYPE_I8", DType::I8),
        ("HALITE_DTYPE_U8", DType::U8),
        ("HALITE_DTYPE_I16", DType::I16),
        ("HALITE_DTYPE_U16", DType::U16),
        ("HALITE_DTYPE_I32", DType::I32),
        ("HALITE_DTYPE_U32", DType::U32),
        ("HALITE_DTYPE_I64", DType::I64),
        ("HALITE_DTYPE_U64", DType::U64),
        ("HALITE_DTYPE_F16", DType::F16),
        ("HALITE_DTYPE_BF16", DType::BF16),
        ("HALITE_DTYPE_F32", DType::F32),
        ("HALITE_DTYPE_F64", DType::F64),
    ];
    constants.extend(dtypes.map(|(name, dtype)| (name, dtype_code(dtype).into())));
    constants
}

/// A translation unit that fails to compile where header and mirror differ. The array's length is negative then,
/// which C99 knows as well as C++.
fn assertions() -> String {
    let mut unit = String::from("#include <stddef.h>\n#include \"halite_plugin.h\"\n");
    let mut number = 0;
    let mut check = |condition: String| {
        let _ = writeln!(unit, "extern char check_{number}[({condition}) ? 1 : -1];");
        number += 1;
    };
    for item in structs() {
        let name = item.name;
        check(format!("sizeof({name}) == {}", item.size));
        for (field, offset, size) in item.fields {
            check(format!("offsetof({name}, {field}) == {offset}"));
            check(format!("sizeof((({name} *)0)->{field}) == {size}"));
        }
    }
    for (name, value) in constants() {
        let suffix = if value > i64::MAX.into() { "u" } else { "" };
        check(format!("{name} == {value}{suffix}"));
    }
    unit
}

/// Whether `unit` compiles; `None` without that compiler.
fn compiles(compiler: &str, arguments: &[&str], unit: &str) -> Option<Result<(), String>> {
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
    let mut child = Command::new(compiler)
        .args(arguments)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"])
        .args(["-fsyntax-only", "-I", include, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(unit.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(log) })
}

const C99: (&str, [&str; 4]) = ("cc", ["-x", "c", "-std=c99", "-Wstrict-prototypes"]);
const C11: (&str, [&str; 4]) = ("cc", ["-x", "c", "-std=c11", "-Wstrict-prototypes"]);
const CPP17: (&str, [&str; 4]) = ("c++", ["-x", "c++", "-std=c++17", "-Wcast-qual"]);

#[test]
fn header_and_mirror_agree_as_c99_and_as_cpp17() {
    let unit = assertions();
    for (compiler, arguments) in [C99, CPP17] {
        match compiles(compiler, &arguments, &unit) {
            Some(result) => assert_eq!(result, Ok(()), "{compiler} {arguments:?}"),
            None => println!("skipped: no compiler '{compiler}' on this machine"),
        }
    }
}

#[test]
fn a_difference_between_header_and_mirror_would_be_seen() {
    let unit = assertions().replace("sizeof(halite_range) == 32", "sizeof(halite_range) == 31");
    match compiles(C99.0, &C99.1, &unit) {
        Some(result) => assert!(result.is_err()),
        None => println!("skipped: no compiler '{}' on this machine", C99.0),
    }
}

/// The header's constants and layout against version 1.0, in the compiler's own assertions.
fn pinned_assertions(keyword: &str) -> String {
    let mut unit = String::from("#include <stddef.h>\n#include \"halite_plugin.h\"\n");
    for (number, line) in pinned().into_iter().enumerate() {
        let condition = match line {
            // Structures may grow at their end.
            Pinned::Struct { name, size } => format!("sizeof({name}) >= {size}"),
            Pinned::Field { of, name, offset, size } => {
                let _ = writeln!(unit, "extern {of} *object_{number};");
                format!("offsetof({of}, {name}) == {offset} && sizeof(object_{number}->{name}) == {size}")
            }
            Pinned::Constant { name, value } => {
                format!("{name} == {value}{}", if value > i64::MAX.into() { "u" } else { "" })
            }
        };
        let text = format!("{line:?}").replace('"', "'");
        let _ = writeln!(unit, "{keyword}({condition}, \"{text}\");");
    }
    unit
}

#[cfg(target_pointer_width = "64")]
#[test]
fn the_header_keeps_the_layout_of_every_version() {
    for ((compiler, arguments), keyword) in [(C11, "_Static_assert"), (CPP17, "static_assert")] {
        let unit = pinned_assertions(keyword);
        match compiles(compiler, &arguments, &unit) {
            Some(result) => assert_eq!(result, Ok(()), "{compiler} {arguments:?}"),
            None => println!("skipped: no compiler '{compiler}' on this machine"),
        }
        // The assertions bite: a change of one number is an error.
        for (from, to) in [
            ("offsetof(halite_range, offset) == 16", "offsetof(halite_range, offset) == 24"),
            ("HALITE_STATUS_LINK == 10", "HALITE_STATUS_LINK == 11"),
        ] {
            assert!(unit.contains(from));
            if let Some(result) = compiles(compiler, &arguments, &unit.replace(from, to)) {
                assert!(result.is_err(), "{compiler}: {to}");
            }
        }
    }
}

#[cfg(target_pointer_width = "64")]
#[test]
fn the_mirror_keeps_the_layout_of_every_version() {
    let (structs, constants) = (structs(), constants());
    let own = |name: &str| structs.iter().find(|item| item.name == name).unwrap();
    assert_eq!(ABI_MINOR as usize + 1, VERSIONS.len(), "write down what the new version appends");
    let (mut fields, mut sizes) = (0, std::collections::BTreeMap::new());
    for line in pinned() {
        match line {
            Pinned::Struct { name, size } => {
                let before = sizes.insert(name, size);
                assert!(before.is_none_or(|before| before < size), "{name} does not grow");
            }
            Pinned::Field { of, name, offset, size } => {
                assert!(own(of).fields.contains(&(name, offset, size)), "{of}.{name}");
                fields += 1;
            }
            Pinned::Constant { name, value } => assert!(constants.contains(&(name, value)), "{name}"),
        }
    }
    for item in &structs {
        assert_eq!(sizes.get(item.name), Some(&item.size), "{} has changed: raise ABI_MINOR", item.name);
    }
    // Padding may hide a new field from the sizes.
    let all: usize = structs.iter().map(|item| item.fields.len()).sum();
    assert_eq!(all, fields, "there are new fields: raise ABI_MINOR");
    assert_eq!(ENTRY_SYMBOL, "halite_plugin_entry");
}

/// A type of the mirror in C. `structs` gives the names of structures.
fn c_type(rust: &str, structs: &[Struct]) -> String {
    if let Some(inner) = rust.strip_prefix("*const ") {
        return format!("{} const *", c_type(inner, structs));
    }
    if let Some(inner) = rust.strip_prefix("*mut ") {
        return format!("{} *", c_type(inner, structs));
    }
    match rust {
        "i8" => "char".into(),
        "u8" | "u32" | "u64" | "i32" | "i64" => {
            format!("{}int{}_t", rust.replace(|c: char| c != 'u', ""), &rust[1..])
        }
        "core::ffi::c_void" | "()" => "void".into(),
        _ => {
            let item = structs.iter().find(|item| item.rust_name == rust);
            item.unwrap_or_else(|| panic!("no structure is '{rust}' in C")).name.into()
        }
    }
}

/// The header may hold a function of other parameters in the same eight bytes, which no layout shows.
#[test]
fn functions_have_the_same_types_in_header_and_mirror() {
    if std::any::type_name::<c_char>() != "i8" {
        println!("skipped: text cannot be told from bytes on this machine");
        return;
    }
    let structs = structs();
    let mut unit = String::from("#include \"halite_plugin.h\"\n");
    let mut functions = 0;
    for item in &structs {
        for (field, ty) in &item.types {
            let Some(ty) = ty.strip_prefix("core::option::Option<unsafe extern \"C\" fn(") else { continue };
            let (parameters, result) = ty.strip_suffix('>').unwrap().split_once(')').unwrap();
            let parameters: Vec<_> = parameters.split(", ").map(|ty| c_type(ty, &structs)).collect();
            let result = c_type(result.strip_prefix(" -> ").unwrap_or("()"), &structs);
            let (name, parameters) = (item.name, parameters.join(", "));
            let _ = writeln!(unit, "{result} (*check_{functions}(const {name} *table))({parameters});");
            let _ = writeln!(unit, "{result} (*check_{functions}(const {name} *table))({parameters}) {{");
            let _ = writeln!(unit, "    return table->{field};\n}}");
            functions += 1;
        }
    }
    assert_eq!(functions, 39);
    for (compiler, arguments) in [C99, CPP17] {
        match compiles(compiler, &arguments, &unit) {
            Some(result) => assert_eq!(result, Ok(()), "{compiler} {arguments:?}"),
            None => println!("skipped: no compiler '{compiler}' on this machine"),
        }
        let other = unit.replacen("uint64_t", "uint32_t", 1);
        assert_ne!(other, unit);
        if let Some(result) = compiles(compiler, &arguments, &other) {
            assert!(result.is_err(), "{compiler} sees no difference");
        }
    }
}

#[test]
fn every_structure_starts_with_its_size() {
    for item in structs() {
        assert_eq!(item.fields[0], ("struct_size", 0, 8), "{}", item.name);
    }
    assert_eq!(Range::sized().struct_size, 32);
}

#[test]
fn every_kind_has_a_status_of_its_own() {
    let kinds = [
        ErrorKind::InvalidArgument,
        ErrorKind::Unsupported,
        ErrorKind::Unavailable,
        ErrorKind::OutOfMemory { requested: 0, free: 0 },
        ErrorKind::TooLarge { requested: 0, limit: 0 },
        ErrorKind::Build { log: String::new() },
        ErrorKind::BadFormat,
        ErrorKind::Timeout { after: Duration::ZERO },
        ErrorKind::Fault,
        ErrorKind::Link,
        ErrorKind::DeviceLost,
        ErrorKind::AbiMismatch,
        ErrorKind::Backend { code: 0, message: String::new() },
    ];
    let mut statuses: Vec<_> = kinds.iter().map(status_of).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, (1..=13).collect::<Vec<_>>());
}

#[test]
fn dtype_codes_read_back_and_unknown_ones_are_none() {
    for dtype in DType::ALL {
        assert_eq!(dtype_from_code(dtype_code(dtype)), Some(dtype));
    }
    assert_eq!(dtype_from_code(13), None);
}

#[test]
fn fixed_text_is_cut_at_a_character_and_read_without_a_zero() {
    let mut field = [1; 4];
    set_fixed_text(&mut field, "aäö");
    assert_eq!(fixed_text(&field), "aä");
    assert_eq!(field[3], 0);
    assert_eq!(fixed_text(&[b'x' as c_char; 4]), "xxxx");
    set_fixed_text(&mut [], "x");
}
