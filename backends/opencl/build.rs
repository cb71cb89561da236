//! Makes the archive that the linker finds for `-lOpenCL`: forwarders to the library that is opened at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=stub");
    // NOTE: the bindings name the framework there, which is a part of every macOS.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        return;
    }
    // The bindings themselves ask for the library; only the place where it lies is told here, which the linker
    // searches before the system's folders. An archive of that name would be linked a second time.
    cc::Build::new().file("stub/opencl.c").warnings(true).cargo_metadata(false).compile("OpenCL");
    println!("cargo::rustc-link-search=native={}", std::env::var("OUT_DIR").expect("Cargo sets it"));
}
