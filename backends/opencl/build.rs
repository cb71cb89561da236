//! Makes the archive that the linker finds for `-lOpenCL`: forwarders to the library that is opened at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=stub");
    // NOTE: the bindings name the framework there, which is a part of every macOS.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        return;
    }
    // Linked with this crate, and so before the library that the bindings ask for: whichever the linker finds under that
    // name, this archive or an installed library, it has nothing left to resolve.
    cc::Build::new().file("stub/opencl.c").warnings(true).compile("OpenCL");
}
