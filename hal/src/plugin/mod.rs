//! The plugin interface: the Rust mirror of `include/halite_plugin.h`, which is the contract and explains every
//! name. A test compiles the header and compares the two, field by field.
//!
//! Both sides of the interface use this module: the loader in `halite-npu`, and plugins that are written in Rust.

mod change;
mod status;

#[cfg(test)]
mod layout;

pub use change::{ChangedTable, FUNCTIONS, TableChange};
pub use status::{dtype_code, dtype_from_code, status_of};

use std::ffi::{c_char, c_void};

/// Major version of the interface; must be equal on both sides.
pub const ABI_MAJOR: u32 = 1;
/// Minor version of the interface; counts what was appended.
pub const ABI_MINOR: u32 = 1;
/// The symbol that a plugin exports.
pub const ENTRY_SYMBOL: &str = "halite_plugin_entry";

/// What every call returns.
pub type Status = i32;
/// Success.
pub const STATUS_OK: Status = 0;
/// A parameter that no device could accept.
pub const STATUS_INVALID_ARGUMENT: Status = 1;
/// Healthy, but cannot do this and never will.
pub const STATUS_UNSUPPORTED: Status = 2;
/// A device, driver or file is not there.
pub const STATUS_UNAVAILABLE: Status = 3;
/// No room now.
pub const STATUS_OUT_OF_MEMORY: Status = 4;
/// Beyond a limit.
pub const STATUS_TOO_LARGE: Status = 5;
/// A program does not compile or link.
pub const STATUS_BUILD: Status = 6;
/// A damaged program or file.
pub const STATUS_BAD_FORMAT: Status = 7;
/// Work took too long.
pub const STATUS_TIMEOUT: Status = 8;
/// A trap or an exception of a core.
pub const STATUS_FAULT: Status = 9;
/// The link to or between devices failed.
pub const STATUS_LINK: Status = 10;
/// The device is gone.
pub const STATUS_DEVICE_LOST: Status = 11;
/// The plugin cannot serve this host's version.
pub const STATUS_ABI_MISMATCH: Status = 12;
/// Any other failure, with the driver's own code.
pub const STATUS_BACKEND: Status = 13;

/// Bit of the device's own memory in [`DeviceInfo::memory_kind_mask`], as `1 << kind`.
pub const MEMORY_DEVICE: u32 = 0;
/// Memory that both sides address.
pub const MEMORY_HOST_VISIBLE: u32 = 1;
/// Host memory that the device copies from and to directly.
pub const MEMORY_PINNED: u32 = 2;

/// The work is under way.
pub const COMPLETION_PENDING: u32 = 0;
/// The work is over and succeeded.
pub const COMPLETION_DONE: u32 = 1;
/// The work is over and failed.
pub const COMPLETION_FAILED: u32 = 2;

/// No limit to a wait.
pub const NO_TIMEOUT: u64 = u64::MAX;

/// In [`ArgumentInfo`] alone: a buffer of any element type.
pub const DTYPE_ANY: u32 = u32::MAX;

/// An argument that is a range of memory.
pub const ARGUMENT_BUFFER: u32 = 0;
/// An argument that is a number.
pub const ARGUMENT_SCALAR: u32 = 1;
/// The kernel reads the range.
pub const ACCESS_READ: u32 = 1;
/// The kernel writes the range.
pub const ACCESS_WRITE: u32 = 2;

/// Tier 2a: built-in operations.
pub const FEATURE_BUILTINS: u64 = 1 << 0;
/// Tier 2b: programs.
pub const FEATURE_PROGRAMS: u64 = 1 << 1;

/// A device, opened.
pub type DeviceHandle = u64;
/// Device memory.
pub type MemoryHandle = u64;
/// An in-order queue.
pub type StreamHandle = u64;
/// A point on a stream.
pub type EventHandle = u64;
/// A prepared built-in.
pub type BuiltinHandle = u64;
/// A loaded program.
pub type ProgramHandle = u64;
/// A kernel of a program.
pub type KernelHandle = u64;

/// Declares a `#[repr(C)]` structure whose every field is public, with the field's name as its documentation.
macro_rules! c_structs {
    ($($(#[$doc:meta])* $name:ident = $c_name:literal { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $ty,)*
            }

            impl $name {
                /// A cleared structure that states its own size.
                #[must_use]
                pub fn sized() -> Self {
                    // SAFETY: every field is a number, an array of numbers, a raw pointer or an optional function,
                    // for all of which zero bytes are a value (the list of structures below holds no other types).
                    let mut cleared: Self = unsafe { std::mem::zeroed() };
                    cleared.struct_size = size_of::<Self>() as u64;
                    cleared
                }
            }
        )*

        /// Name in C, size, and each field with its offset and size.
        #[cfg(test)]
        pub(crate) fn structs() -> Vec<layout::Struct> {
            vec![$(layout::Struct {
                name: $c_name,
                rust_name: std::any::type_name::<$name>(),
                size: size_of::<$name>(),
                fields: vec![$((
                    stringify!($field),
                    std::mem::offset_of!($name, $field),
                    layout::size_of_field(|s: &$name| &s.$field),
                )),*],
                types: vec![$((stringify!($field), std::any::type_name::<$ty>())),*],
            }),*]
        }
    };
}

c_structs! {
    /// Explains a status that is not OK.
    Error = "halite_error" {
        /// Bytes of this structure.
        struct_size: u64,
        /// Bytes at `text`, the final zero included.
        text_capacity: u64,
        /// One line, or the log of a build.
        text: *mut c_char,
        /// The driver's own code.
        native_code: i64,
        /// Numbers that the status refers to.
        detail: [u64; 2],
    }

    /// What the host offers.
    Host = "halite_host" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The host's major version.
        abi_major: u32,
        /// The host's minor version.
        abi_minor: u32,
        /// Passes a line to the host's log.
        log: Option<unsafe extern "C" fn(level: u32, text: *const c_char)>,
    }

    /// An option for opening a device.
    OpenOption = "halite_option" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The option's name.
        key: *const c_char,
        /// Its value.
        value: *const c_char,
    }

    /// What a device is and can do.
    DeviceInfo = "halite_device_info" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The product's name.
        name: [c_char; 128],
        /// The maker.
        vendor: [c_char; 64],
        /// The driver's version.
        driver_version: [c_char; 64],
        /// Bytes that kernels can use.
        memory_bytes: u64,
        /// Largest single allocation.
        max_allocation_bytes: u64,
        /// Alignment of ranges in arguments; a power of two.
        offset_alignment_bytes: u64,
        /// Bit `1 << code` for each element type.
        dtype_mask: u64,
        /// Bit `1 << kind` for each memory kind.
        memory_kind_mask: u32,
        /// Cores or the like.
        compute_units: u32,
        /// Blocks of a launch.
        max_blocks: u32,
        /// Arguments of a launch.
        max_arguments: u32,
        /// What `program_load` takes.
        program_format: [c_char; 32],
        /// Names that kernels may require, separated by commas.
        capabilities: [c_char; 256],
        /// Alignment of memory that is imported; 0 where none is.
        import_alignment_bytes: u64,
    }

    /// Memory of a device at one moment.
    MemoryInfo = "halite_memory_info" {
        /// Bytes of this structure.
        struct_size: u64,
        /// Bytes that can still be allocated.
        free_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    }

    /// Where work stands.
    Completion = "halite_completion" {
        /// Bytes of this structure.
        struct_size: u64,
        /// `COMPLETION_*`.
        state: u32,
        /// Of the work, when it failed.
        status: Status,
    }

    /// A range of device memory.
    Range = "halite_range" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The memory; may be 0 when the range is empty.
        memory: MemoryHandle,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        length: u64,
    }

    /// A dense operand of a built-in.
    Operand = "halite_operand" {
        /// Bytes of this structure.
        struct_size: u64,
        /// Type of the elements.
        dtype: u32,
        /// Number of axes.
        rank: u32,
        /// Extent per axis.
        shape: *const u64,
        /// Elements between neighbours per axis.
        strides: *const i64,
    }

    /// A number that belongs to a built-in.
    Attribute = "halite_attribute" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The attribute's name.
        key: *const c_char,
        /// Its bits, zero-extended.
        bits: u64,
    }

    /// An operation and what it will run on.
    BuiltinDesc = "halite_builtin_desc" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The operation's name.
        name: *const c_char,
        /// Number of operands.
        operand_count: u32,
        /// Number of attributes.
        attribute_count: u32,
        /// Operands; the last one is written.
        operands: *const *const Operand,
        /// Attributes.
        attributes: *const *const Attribute,
    }

    /// An argument of a launch.
    Argument = "halite_argument" {
        /// Bytes of this structure.
        struct_size: u64,
        /// `ARGUMENT_*`.
        kind: u32,
        /// Of the elements or the scalar.
        dtype: u32,
        /// The buffer's memory.
        memory: MemoryHandle,
        /// The buffer's first byte.
        offset: u64,
        /// The buffer's length in bytes.
        length: u64,
        /// The scalar's bits.
        bits: u64,
    }

    /// What a kernel takes.
    KernelInfo = "halite_kernel_info" {
        /// Bytes of this structure.
        struct_size: u64,
        /// Number of arguments.
        argument_count: u32,
        /// Most blocks of a launch; 0 is the device's limit.
        max_blocks: u32,
    }

    /// What one argument of a kernel must be.
    ArgumentInfo = "halite_argument_info" {
        /// Bytes of this structure.
        struct_size: u64,
        /// `ARGUMENT_*`.
        kind: u32,
        /// Of the elements or the scalar.
        dtype: u32,
        /// `ACCESS_*` of a buffer.
        access: u32,
        /// Zero.
        reserved: u32,
    }

    /// One measurement since the device was opened.
    Counter = "halite_counter" {
        /// Bytes of this structure.
        struct_size: u64,
        /// The counter's name.
        key: [c_char; 64],
        /// `cycles`, `bytes`, `share` or empty.
        unit: [c_char; 16],
        /// The value.
        value: f64,
    }

    /// The plugin's functions.
    Plugin = "halite_plugin" {
        /// Bytes of this structure.
        struct_size: u64,
        /// Major version that the plugin was compiled with.
        abi_major: u32,
        /// Minor version that the plugin was compiled with.
        abi_minor: u32,
        /// `FEATURE_*`.
        features: u64,
        /// The plugin's name.
        name: [c_char; 64],
        /// The plugin's version.
        version: [c_char; 32],
        /// Counts devices.
        device_count: Option<unsafe extern "C" fn(out: *mut u32, error: *mut Error) -> Status>,
        /// Describes a device.
        device_info: Option<unsafe extern "C" fn(index: u32, option_count: u32, options: *const *const OpenOption, out: *mut DeviceInfo, error: *mut Error) -> Status>,
        /// Opens a device.
        device_open: Option<unsafe extern "C" fn(index: u32, option_count: u32, options: *const *const OpenOption, out: *mut DeviceHandle, error: *mut Error) -> Status>,
        /// Closes a device.
        device_close: Option<unsafe extern "C" fn(device: DeviceHandle)>,
        /// Allocates memory.
        memory_alloc: Option<unsafe extern "C" fn(device: DeviceHandle, kind: u32, length: u64, out: *mut MemoryHandle, host_pointer: *mut *mut c_void, error: *mut Error) -> Status>,
        /// Frees memory.
        memory_free: Option<unsafe extern "C" fn(device: DeviceHandle, memory: MemoryHandle)>,
        /// Reports memory.
        memory_info: Option<unsafe extern "C" fn(device: DeviceHandle, out: *mut MemoryInfo, error: *mut Error) -> Status>,
        /// Makes a stream.
        stream_create: Option<unsafe extern "C" fn(device: DeviceHandle, out: *mut StreamHandle, error: *mut Error) -> Status>,
        /// Gives an idle stream back.
        stream_destroy: Option<unsafe extern "C" fn(stream: StreamHandle)>,
        /// Copies to the device.
        stream_write: Option<unsafe extern "C" fn(stream: StreamHandle, dst: MemoryHandle, dst_offset: u64, src: *const c_void, length: u64, error: *mut Error) -> Status>,
        /// Copies from the device.
        stream_read: Option<unsafe extern "C" fn(stream: StreamHandle, dst: *mut c_void, src: MemoryHandle, src_offset: u64, length: u64, error: *mut Error) -> Status>,
        /// Copies within the device.
        stream_copy: Option<unsafe extern "C" fn(stream: StreamHandle, dst: MemoryHandle, dst_offset: u64, src: MemoryHandle, src_offset: u64, length: u64, error: *mut Error) -> Status>,
        /// Repeats a pattern.
        stream_fill: Option<unsafe extern "C" fn(stream: StreamHandle, dst: MemoryHandle, dst_offset: u64, length: u64, pattern: *const u8, pattern_length: u32, error: *mut Error) -> Status>,
        /// Holds later work back until an event is over.
        stream_wait_event: Option<unsafe extern "C" fn(stream: StreamHandle, event: EventHandle, error: *mut Error) -> Status>,
        /// Waits for everything enqueued.
        stream_synchronize: Option<unsafe extern "C" fn(stream: StreamHandle, timeout_ns: u64, out: *mut Completion, error: *mut Error) -> Status>,
        /// Makes an event.
        event_create: Option<unsafe extern "C" fn(device: DeviceHandle, out: *mut EventHandle, error: *mut Error) -> Status>,
        /// Gives an event back.
        event_destroy: Option<unsafe extern "C" fn(event: EventHandle)>,
        /// Makes an event stand for everything enqueued so far.
        event_record: Option<unsafe extern "C" fn(stream: StreamHandle, event: EventHandle, error: *mut Error) -> Status>,
        /// Waits for an event.
        event_wait: Option<unsafe extern "C" fn(event: EventHandle, timeout_ns: u64, out: *mut Completion, error: *mut Error) -> Status>,
        /// Says where an event's work stands.
        event_query: Option<unsafe extern "C" fn(event: EventHandle, out: *mut Completion, error: *mut Error) -> Status>,
        /// Device time between two events.
        event_elapsed: Option<unsafe extern "C" fn(earlier: EventHandle, later: EventHandle, nanoseconds: *mut u64, error: *mut Error) -> Status>,
        /// Forgets a stream's failure.
        stream_reset: Option<unsafe extern "C" fn(stream: StreamHandle, error: *mut Error) -> Status>,
        /// Whether the device still answers.
        device_health: Option<unsafe extern "C" fn(device: DeviceHandle, error: *mut Error) -> Status>,
        /// Measurements.
        device_counters: Option<unsafe extern "C" fn(device: DeviceHandle, capacity: u32, out: *const *mut Counter, count: *mut u32, error: *mut Error) -> Status>,
        /// A vendor's own functions.
        get_extension: Option<unsafe extern "C" fn(name: *const c_char) -> *const c_void>,
        /// Whether a built-in would be prepared.
        builtin_validate: Option<unsafe extern "C" fn(device: DeviceHandle, desc: *const BuiltinDesc, error: *mut Error) -> Status>,
        /// Makes a built-in ready.
        builtin_prepare: Option<unsafe extern "C" fn(device: DeviceHandle, desc: *const BuiltinDesc, out: *mut BuiltinHandle, workspace_bytes: *mut u64, error: *mut Error) -> Status>,
        /// Gives a built-in back.
        builtin_release: Option<unsafe extern "C" fn(device: DeviceHandle, builtin: BuiltinHandle)>,
        /// Runs a built-in.
        builtin_enqueue: Option<unsafe extern "C" fn(stream: StreamHandle, builtin: BuiltinHandle, range_count: u32, ranges: *const *const Range, error: *mut Error) -> Status>,
        /// Loads a program.
        program_load: Option<unsafe extern "C" fn(device: DeviceHandle, bytes: *const c_void, length: u64, out: *mut ProgramHandle, error: *mut Error) -> Status>,
        /// Gives a program back.
        program_unload: Option<unsafe extern "C" fn(device: DeviceHandle, program: ProgramHandle)>,
        /// Finds a kernel.
        kernel_find: Option<unsafe extern "C" fn(program: ProgramHandle, name: *const c_char, out: *mut KernelHandle, error: *mut Error) -> Status>,
        /// Runs a kernel.
        kernel_launch: Option<unsafe extern "C" fn(stream: StreamHandle, kernel: KernelHandle, block_count: u32, argument_count: u32, arguments: *const *const Argument, error: *mut Error) -> Status>,
        /// What a kernel takes.
        kernel_info: Option<unsafe extern "C" fn(kernel: KernelHandle, out: *mut KernelInfo, error: *mut Error) -> Status>,
        /// What one argument must be.
        kernel_argument: Option<unsafe extern "C" fn(kernel: KernelHandle, index: u32, out: *mut ArgumentInfo, error: *mut Error) -> Status>,
        /// Makes memory of the host the device's, in place.
        memory_import: Option<unsafe extern "C" fn(device: DeviceHandle, pointer: *mut c_void, length: u64, out: *mut MemoryHandle, error: *mut Error) -> Status>,
        /// Lets streams of a device copy from another.
        peer_enable: Option<unsafe extern "C" fn(device: DeviceHandle, peer: DeviceHandle, error: *mut Error) -> Status>,
        /// Copies from an enabled peer.
        stream_copy_peer: Option<unsafe extern "C" fn(stream: StreamHandle, dst: MemoryHandle, dst_offset: u64, peer: DeviceHandle, src: MemoryHandle, src_offset: u64, length: u64, error: *mut Error) -> Status>,
    }
}

/// The exported function.
pub type Entry =
    unsafe extern "C" fn(host: *const Host, out: *mut *const Plugin, error: *mut Error) -> Status;

/// The text of a fixed field, up to its zero byte or its end.
#[must_use]
pub fn fixed_text(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes text to a fixed field, cut at a character so that the final zero fits.
pub fn set_fixed_text(field: &mut [c_char], text: &str) {
    let Some(room) = field.len().checked_sub(1) else { return };
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    field.fill(0);
    for (byte, source) in field.iter_mut().zip(&text.as_bytes()[..end]) {
        *byte = *source as c_char;
    }
}
