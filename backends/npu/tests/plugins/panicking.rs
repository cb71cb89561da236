//! A plugin in Rust that panics in `device_count`: through `extern "C"`, which ends the process there, or through
//! `extern "C-unwind"` (`--cfg unwinds`), which lets the panic out.
#![allow(unexpected_cfgs)]

use std::sync::OnceLock;

/// As much of `halite_plugin` as an old plugin might have: up to `event_query`.
#[repr(C)]
struct Table {
    struct_size: u64,
    abi: [u32; 2],
    features: u64,
    name: [u8; 64],
    version: [u8; 32],
    device_count: *const (),
    others: [*const (); 19],
}

// SAFETY: the table is never changed, and its pointers lead to functions.
unsafe impl Sync for Table {}
// SAFETY: as above.
unsafe impl Send for Table {}

static TABLE: OnceLock<Table> = OnceLock::new();

#[cfg(unwinds)]
extern "C-unwind" fn device_count(_out: *mut u32, _error: *mut ()) -> i32 {
    panic!("the plugin gives up")
}

#[cfg(not(unwinds))]
extern "C" fn device_count(_out: *mut u32, _error: *mut ()) -> i32 {
    panic!("the plugin gives up")
}

extern "C" fn never_called() {}

/// The plugin's entry; see `halite_plugin.h`.
///
/// # Safety
/// `out` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn halite_plugin_entry(_host: *const (), out: *mut *const (), _error: *mut ()) -> i32 {
    let table = TABLE.get_or_init(|| Table {
        struct_size: size_of::<Table>() as u64,
        abi: [1, 0],
        features: 0,
        name: [0; 64],
        version: [0; 32],
        device_count: device_count as *const (),
        others: [never_called as *const (); 19],
    });
    // SAFETY: by this function's contract.
    unsafe { out.write(std::ptr::from_ref(table).cast()) };
    0
}
