//! Compiled programs on disk: found again, and never trusted when they are damaged or of another driver.

mod common;

use common::*;
use halite_hal::driver::Backend as _;
use halite_hal::{ErrorKind, KernelSource, Scalar, as_bytes, from_bytes};
use halite_opencl::OpenClBackend;

/// The files of compiled programs in a folder.
fn kept(folder: &Folder) -> Vec<std::path::PathBuf> {
    let entries =
        std::fs::read_dir(folder.0.join("opencl")).map(|entries| entries.map(|entry| entry.unwrap().path()));
    entries.map_or(Vec::new(), Iterator::collect)
}

/// Loads and runs a kernel whose program is kept in `folder`, by a backend that has not seen it.
fn add_one_from(folder: &Folder, options: &str) -> halite_hal::Result<u32> {
    let device = OpenClBackend::new().with_cache_folder(&folder.0).open(0)?;
    let mut source = text(SOURCE, "increment", [1, 1, 1], vec![U32_BOTH, U32]);
    if let KernelSource::Text { options: own, .. } = &mut source {
        *own = options.into();
    }
    let kernel = device.load(&source)?;
    let stream = device.create_stream()?;
    let buffer = upload(&device, &stream, as_bytes(&[41u32]));
    stream.launch(&kernel, [1, 1, 1], &[buffer.clone().into(), Scalar::U32(1).into()])?;
    Ok(from_bytes::<u32>(&download(&stream, &buffer))[0])
}

#[test]
fn compiled_programs_are_kept_and_damaged_ones_compiled_again() {
    if device().is_none() {
        return;
    }
    let folder = Folder::new("kept");
    assert_eq!(add_one_from(&folder, "").unwrap(), 42);
    let [file] = &kept(&folder)[..] else { panic!("one program, so one file") };
    let whole = std::fs::read(file).unwrap();
    assert_eq!(add_one_from(&folder, "").unwrap(), 42);
    for damage in [whole[..whole.len() / 2].to_vec(), vec![], [&whole[..], b"x"].concat()] {
        std::fs::write(file, damage).unwrap();
        assert_eq!(add_one_from(&folder, "").unwrap(), 42);
        assert_eq!(std::fs::read(file).unwrap().len(), whole.len(), "it was not kept anew");
    }
    assert_eq!(add_one_from(&folder, "-DOTHER").unwrap(), 42);
    assert_eq!(kept(&folder).len(), 2);
}

#[test]
fn a_kept_program_is_used_without_a_compiler() {
    const NAME: &str = "a_kept_program_is_used_without_a_compiler";
    let folder = Folder::new("hit");
    if device().is_some() && std::env::var_os("SHIM_FAIL").is_none() {
        add_one_from(&folder, "").unwrap();
    }
    let variables = [("SHIM_FAIL", "clCreateProgramWithSource:0:-6"), ("KEPT", folder.0.to_str().unwrap())];
    let Some(()) = with_shim(NAME, &variables) else { return };
    let kept = Folder(std::env::var_os("KEPT").unwrap().into());
    assert_eq!(add_one_from(&kept, "").unwrap(), 42);
    // Another option is another program, and that cannot be compiled here.
    assert!(matches!(add_one_from(&kept, "-DOTHER").unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
}

#[test]
fn a_program_of_another_driver_version_is_compiled_again() {
    const NAME: &str = "a_program_of_another_driver_version_is_compiled_again";
    let folder = Folder::new("version");
    if device().is_some() && std::env::var_os("SHIM_TEXT").is_none() {
        add_one_from(&folder, "").unwrap();
        assert_eq!(kept(&folder).len(), 1);
    }
    // CL_DRIVER_VERSION
    let variables = [("SHIM_TEXT", "102d:99.9"), ("KEPT", folder.0.to_str().unwrap())];
    let Some(()) = with_shim(NAME, &variables) else { return };
    let folder = Folder(std::env::var_os("KEPT").unwrap().into());
    assert_eq!(kept(&folder).len(), 1);
    assert_eq!(add_one_from(&folder, "").unwrap(), 42);
    assert_eq!(kept(&folder).len(), 2);
}

#[test]
fn a_kept_program_that_the_driver_refuses_is_compiled_again() {
    const NAME: &str = "a_kept_program_that_the_driver_refuses_is_compiled_again";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clCreateProgramWithBinary:0:-42")]) else { return };
    let folder = Folder::new("refused");
    for _ in 0..2 {
        assert_eq!(add_one_from(&folder, "").unwrap(), 42);
        assert_eq!(kept(&folder).len(), 1);
    }
}

#[test]
fn a_folder_that_cannot_be_written_costs_only_compilations() {
    if device().is_none() {
        return;
    }
    let folder = Folder::new("unwritable");
    std::fs::write(folder.0.join("opencl"), "a file in the way").unwrap();
    assert_eq!(add_one_from(&folder, "").unwrap(), 42);
    assert_eq!(add_one_from(&folder, "").unwrap(), 42);
}
