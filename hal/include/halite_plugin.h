/* halite_plugin.h - how a vendor's accelerator becomes a device of Halite.
 *
 * A plugin is a shared library that exports one function, halite_plugin_entry. It returns a table of
 * functions, and Halite calls those. This file is the whole contract; it needs nothing but <stdint.h>. A complete
 * plugin in C99 is backends/npu/example-plugin/example.c, and docs/writing-a-plugin.md leads there step by step.
 * Files are found by name: libhalite_npu_*.so (or .dylib; halite_npu_*.dll on Windows).
 *
 * Tiers
 *   1   devices, memory, streams, events: every plugin.
 *   2a  built-in operations of the vendor's own library (HALITE_FEATURE_BUILTINS). Every plugin should offer
 *       "copy", "fill" and "add", so that it can be tested.
 *   2b  programs in the device's own binary format (HALITE_FEATURE_PROGRAMS).
 *
 * Versions
 *   Minor versions only append: fields behind the last one of a structure, functions behind the last one of
 *   the table, new codes and keys. Majors must be equal. Every structure starts with its size in bytes.
 *   - From the host (options, operands, arguments): fields beyond the size that you know are to be ignored.
 *   - For results (`out`): the host sets struct_size and clears the rest. Write no byte beyond that size, and
 *     leave struct_size as it is.
 *   - In the table: a function exists if it lies inside struct_size and is not NULL.
 *   Arrays are arrays of pointers, so that their elements may grow.
 *
 * Handles
 *   64-bit numbers of the plugin's choice; 0 is never one. Each belongs to the device that made it. What the
 *   plugin makes, the host gives back to the plugin exactly once (close, free, destroy, unload, release), when
 *   no work uses it any more and everything made from it is gone. The host frees no memory of the plugin, nor
 *   the plugin memory of the host. Pointers that the host passes are valid during the call only, except where
 *   said. Text is UTF-8 and ends with a zero byte; fixed fields are cut to fit, the zero included.
 *
 * Threads
 *   Every function may be called from any thread, several at once, on several devices and on one. The host
 *   never uses a handle while it gives it back, and never makes two calls that enqueue on the same stream at
 *   once. The library is never unloaded; do not tear down in static destructors. Neither exceptions nor panics may
 *   leave a function: the host cannot catch them.
 *
 * Blocking
 *   Only these may wait for the device's work: stream_synchronize, event_wait, device_close. These may take
 *   long for other reasons (a driver, a compiler): device_count, device_info, device_open, memory_alloc,
 *   memory_free, stream_create, program_load, builtin_prepare. All others return at once; in particular,
 *   enqueueing never waits for earlier work. Work may be done inside of the call that enqueues it when nothing is
 *   before it, as on a device without queues. A plugin that takes longer than a limit of the host's (60 seconds) for
 *   its entry, device_count, device_info or device_open, or to come back from a wait after its timeout, is not
 *   called again: its devices are lost.
 *
 * Completion and failure
 *   A stream runs its work in order. Streams are ordered against each other by events alone.
 *   - A call that is refused (wrong argument, unsupported) returns its status and enqueues nothing; the stream
 *     goes on.
 *   - Work that fails later makes the stream failed: what is enqueued behind it is skipped, and events behind
 *     it and stream_synchronize report that first failure, until stream_reset. A stream that waits for a
 *     failed event fails the same way. (The host refuses new work on a stream that it knows to have failed.)
 *   - Host memory of an asynchronous copy, and all handles that work uses, live until an event behind the work
 *     or a stream_synchronize reports done or failed. From then on the plugin touches them no more.
 *   - HALITE_STATUS_DEVICE_LOST is final: all work of the device has ended, its events report failed, no host
 *     memory is touched any more, and every call answers with it, except those that give handles back, which
 *     still succeed. The device may be opened anew.
 */
#ifndef HALITE_PLUGIN_H
#define HALITE_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HALITE_ABI_MAJOR 1u
#define HALITE_ABI_MINOR 1u

#if defined(_WIN32)
#define HALITE_PLUGIN_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define HALITE_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define HALITE_PLUGIN_EXPORT
#endif

/* What every call returns. Codes that are not listed here reach the user as a driver error of that code. */
typedef int32_t halite_status;
#define HALITE_STATUS_OK 0
#define HALITE_STATUS_INVALID_ARGUMENT 1 /* a parameter that no device could accept */
#define HALITE_STATUS_UNSUPPORTED 2      /* healthy, but cannot do this and never will */
#define HALITE_STATUS_UNAVAILABLE 3      /* a device, driver or file is not there */
#define HALITE_STATUS_OUT_OF_MEMORY 4    /* detail: bytes requested, bytes free */
#define HALITE_STATUS_TOO_LARGE 5        /* beyond a limit; detail: requested, limit */
#define HALITE_STATUS_BUILD 6            /* a program does not compile or link; text: the log */
#define HALITE_STATUS_BAD_FORMAT 7       /* a damaged program or file */
#define HALITE_STATUS_TIMEOUT 8          /* work took too long; detail: nanoseconds */
#define HALITE_STATUS_FAULT 9            /* a trap or an exception of a core */
#define HALITE_STATUS_LINK 10            /* the link to or between devices failed */
#define HALITE_STATUS_DEVICE_LOST 11     /* no heartbeat; the device is gone */
#define HALITE_STATUS_ABI_MISMATCH 12    /* the plugin cannot serve this host's version */
#define HALITE_STATUS_BACKEND 13         /* any other failure; native_code: the driver's own code */

/* Explains a status that is not OK, or a completion that failed. The host passes one to every call that can
 * fail (never NULL), with text[0] = 0; the plugin writes what it knows. */
typedef struct halite_error {
    uint64_t struct_size;
    uint64_t text_capacity; /* bytes at text, the final zero included; at least 256 */
    char *text;             /* one line, lower case, no full stop; the log for HALITE_STATUS_BUILD */
    int64_t native_code;
    uint64_t detail[2]; /* see the codes */
} halite_error;

/* Element types. Bit (1 << code) stands for each in dtype_mask. */
#define HALITE_DTYPE_BOOL 0u /* one byte, 0 or 1 */
#define HALITE_DTYPE_I8 1u
#define HALITE_DTYPE_U8 2u
#define HALITE_DTYPE_I16 3u
#define HALITE_DTYPE_U16 4u
#define HALITE_DTYPE_I32 5u
#define HALITE_DTYPE_U32 6u
#define HALITE_DTYPE_I64 7u
#define HALITE_DTYPE_U64 8u
#define HALITE_DTYPE_F16 9u   /* IEEE 754 binary16 */
#define HALITE_DTYPE_BF16 10u /* upper half of a binary32 */
#define HALITE_DTYPE_F32 11u
#define HALITE_DTYPE_F64 12u
#define HALITE_DTYPE_ANY UINT32_MAX /* in halite_argument_info alone: a buffer of any type */

typedef uint64_t halite_device;
typedef uint64_t halite_memory;
typedef uint64_t halite_stream;
typedef uint64_t halite_event;
typedef uint64_t halite_builtin;
typedef uint64_t halite_program;
typedef uint64_t halite_kernel;

/* What the host offers. Valid for the life of the process. */
typedef struct halite_host {
    uint64_t struct_size;
    uint32_t abi_major;
    uint32_t abi_minor;
    /* Passes a line to the host's log, at any time and from any thread; may be NULL. Level: 1 error, 2 warning,
     * 3 information, 4 debug, 5 trace. The program `halite` shows errors and warnings, and what HALITE_LOG names. */
    void (*log)(uint32_t level, const char *text);
} halite_host;

/* An option for opening a device, such as machine = FILE. Users give options of all plugins' devices in
 * HALITE_NPU_OPTIONS=key=value,key=value. An unknown key is HALITE_STATUS_INVALID_ARGUMENT, with
 * the key and those that are known in the text. */
typedef struct halite_option {
    uint64_t struct_size;
    const char *key;
    const char *value;
} halite_option;

#define HALITE_MEMORY_DEVICE 0u       /* the device's own memory; every plugin */
#define HALITE_MEMORY_HOST_VISIBLE 1u /* both sides address it */
#define HALITE_MEMORY_PINNED 2u       /* host memory that the device copies from and to directly */

typedef struct halite_device_info {
    uint64_t struct_size;
    char name[128];
    char vendor[64];
    char driver_version[64];
    uint64_t memory_bytes;           /* that kernels can use; at most 2^56 */
    uint64_t max_allocation_bytes;   /* largest single allocation */
    uint64_t offset_alignment_bytes; /* of every non-empty range of an argument; a power of two, 1 for any */
    uint64_t dtype_mask;             /* element types that kernels load and store */
    uint32_t memory_kind_mask;       /* bit (1 << kind) for each HALITE_MEMORY_*; DEVICE must be set */
    uint32_t compute_units;          /* cores or the like; at least 1 */
    uint32_t max_blocks;             /* blocks of a launch; 0 without tier 2b */
    uint32_t max_arguments;          /* of a launch or built-in; at least 4 */
    char program_format[32];         /* what program_load takes ("npu-program"); empty without tier 2b */
    char capabilities[256];          /* names that kernels may require, separated by commas; "emulated": not hardware */
    uint64_t import_alignment_bytes; /* since 1.1: of memory that memory_import takes, a power of two; 0: it takes none */
} halite_device_info;

typedef struct halite_memory_info {
    uint64_t struct_size;
    uint64_t free_bytes;
    uint64_t total_bytes;
} halite_memory_info;

/* Where work stands. */
#define HALITE_COMPLETION_PENDING 0u
#define HALITE_COMPLETION_DONE 1u
#define HALITE_COMPLETION_FAILED 2u /* over, and the call's error explains the first failure */

typedef struct halite_completion {
    uint64_t struct_size;
    uint32_t state;       /* HALITE_COMPLETION_* */
    halite_status status; /* of the work, when it failed */
} halite_completion;

#define HALITE_NO_TIMEOUT UINT64_MAX

/* A range of device memory. With length 0, memory may be 0. */
typedef struct halite_range {
    uint64_t struct_size;
    halite_memory memory;
    uint64_t offset;
    uint64_t length;
} halite_range;

/* A dense operand of a built-in. Strides count elements; 0 repeats. Rank 0 is one element. Element (i, j, ...) lies at
 * byte range.offset + (i * strides[0] + j * strides[1] + ...) * size, which need not be a multiple of its size unless
 * offset_alignment_bytes says so. Every element lies inside of the range that the operand gets; where one would not,
 * builtin_enqueue refuses. So does it with a negative stride over an extent above 1, which would leave the range at its
 * front (builtin_validate may refuse it already). */
typedef struct halite_operand {
    uint64_t struct_size;
    uint32_t dtype;
    uint32_t rank;
    const uint64_t *shape;
    const int64_t *strides;
} halite_operand;

/* A number that belongs to a built-in, such as value_bits of "fill". */
typedef struct halite_attribute {
    uint64_t struct_size;
    const char *key;
    uint64_t bits;
} halite_attribute;

/* An operation and what it will run on. The last operand is written, the others are read.
 *
 *   copy    in, out          out = in; shapes and types agree, strides may differ
 *   fill    out              every element = the low bits of attribute value_bits
 *   add     lhs, rhs, out    shapes and types agree; integers wrap, f16 and bf16 round once
 *   matmul  lhs, rhs, out    out[.., m, n] = sum over k of lhs[.., m, k] * rhs[.., k, n]; zeros for k = 0
 *   fault   out              is accepted, and fails with HALITE_STATUS_FAULT as enqueued work; writes nothing. For tests
 *
 * Names are those of this list, in which every version may append; a plugin lacks what it does not know. Claiming a
 * type in dtype_mask obliges to no built-in of it, and add of bool is none. Attributes that a plugin does not know make
 * the operation UNSUPPORTED. Elements of the written operand lie apart, and it shares memory with a read one only where
 * both have the same range and layout; the caller sees to that.
 */
typedef struct halite_builtin_desc {
    uint64_t struct_size;
    const char *name;
    uint32_t operand_count;
    uint32_t attribute_count;
    const halite_operand *const *operands;
    const halite_attribute *const *attributes;
} halite_builtin_desc;

#define HALITE_ARGUMENT_BUFFER 0u
#define HALITE_ARGUMENT_SCALAR 1u
#define HALITE_ACCESS_READ 1u
#define HALITE_ACCESS_WRITE 2u /* READ | WRITE for both */

/* An argument of a launch. A buffer uses memory, offset and length; a scalar bits (zero-extended). */
typedef struct halite_argument {
    uint64_t struct_size;
    uint32_t kind;  /* HALITE_ARGUMENT_* */
    uint32_t dtype; /* of the elements or the scalar */
    halite_memory memory;
    uint64_t offset;
    uint64_t length;
    uint64_t bits;
} halite_argument;

typedef struct halite_kernel_info {
    uint64_t struct_size;
    uint32_t argument_count;
    uint32_t max_blocks; /* 0: the device's limit */
} halite_kernel_info;

typedef struct halite_argument_info {
    uint64_t struct_size;
    uint32_t kind;   /* HALITE_ARGUMENT_* */
    uint32_t dtype;  /* of the elements (or HALITE_DTYPE_ANY) or the scalar */
    uint32_t access; /* HALITE_ACCESS_*, for a buffer */
    uint32_t reserved;
} halite_argument_info;

/* One measurement since the device was opened: cycles, bytes, busy shares. */
typedef struct halite_counter {
    uint64_t struct_size;
    char key[64];  /* "cube.busy" */
    char unit[16]; /* "cycles", "bytes", "share" or empty */
    double value;
} halite_counter;

#define HALITE_FEATURE_BUILTINS (UINT64_C(1) << 0) /* tier 2a: builtin_* are all there */
#define HALITE_FEATURE_PROGRAMS (UINT64_C(1) << 1) /* tier 2b: program_*, kernel_find, kernel_launch are there */

/* The plugin's functions. Constant, and valid for the life of the process. The first three fields never change,
 * in any major version. Everything up to event_query must be there. */
typedef struct halite_plugin {
    uint64_t struct_size;
    uint32_t abi_major; /* HALITE_ABI_MAJOR that the plugin was compiled with */
    uint32_t abi_minor;
    uint64_t features; /* HALITE_FEATURE_*; unknown bits are ignored */
    char name[64];
    char version[32];

    /* Tier 1: devices. */

    /* How many devices are there now; 0 is legal. They are numbered from 0; beyond, the others answer UNAVAILABLE or
     * INVALID_ARGUMENT. */
    halite_status (*device_count)(uint32_t *out, halite_error *error);
    /* Describes a device as it will be when opened with these options. */
    halite_status (*device_info)(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                 halite_device_info *out, halite_error *error);
    /* Opens a device; one may be opened several times, with memory and work of its own each time. */
    halite_status (*device_open)(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                 halite_device *out, halite_error *error);
    /* Closes a device, of which nothing is left. */
    void (*device_close)(halite_device device);

    /* Tier 1: memory. */

    /* Allocates at least 1 byte, aligned to 64 and to offset_alignment_bytes. The contents are zeros or stale data
     * of this process. For kinds other than DEVICE, *host_pointer is set to the host's address of it. Kinds that are
     * not claimed are UNSUPPORTED. Whatever a kind takes of the device's memory counts in memory_info, and sizes may be
     * rounded up there. */
    halite_status (*memory_alloc)(halite_device device, uint32_t kind, uint64_t length, halite_memory *out,
                                  void **host_pointer, halite_error *error);
    void (*memory_free)(halite_device device, halite_memory memory);
    halite_status (*memory_info)(halite_device device, halite_memory_info *out, halite_error *error);

    /* Tier 1: streams. The host has checked that handles are alive and of one device, that ranges lie inside their memory,
     * are not empty and do not overlap, and that lengths agree; they need no alignment. */

    halite_status (*stream_create)(halite_device device, halite_stream *out, halite_error *error);
    /* Gives an idle stream back. */
    void (*stream_destroy)(halite_stream stream);
    /* Copies to the device. src lives until completion. */
    halite_status (*stream_write)(halite_stream stream, halite_memory dst, uint64_t dst_offset, const void *src,
                                  uint64_t length, halite_error *error);
    /* Copies from the device. dst lives until completion. */
    halite_status (*stream_read)(halite_stream stream, void *dst, halite_memory src, uint64_t src_offset,
                                 uint64_t length, halite_error *error);
    /* Copies within the device. The ranges do not overlap. */
    halite_status (*stream_copy)(halite_stream stream, halite_memory dst, uint64_t dst_offset, halite_memory src,
                                 uint64_t src_offset, uint64_t length, halite_error *error);
    /* Repeats pattern (1, 2, 4 or 8 bytes, which divide length and offset). */
    halite_status (*stream_fill)(halite_stream stream, halite_memory dst, uint64_t dst_offset, uint64_t length,
                                 const uint8_t *pattern, uint32_t pattern_length, halite_error *error);
    /* Holds what is enqueued later back until the event, of any stream of the device (or of a peer that was enabled),
     * is over. */
    halite_status (*stream_wait_event)(halite_stream stream, halite_event event, halite_error *error);
    /* Waits until everything enqueued before the call is over, at most timeout_ns (HALITE_NO_TIMEOUT: no limit,
     * 0: not at all). Out of time: OK and PENDING. */
    halite_status (*stream_synchronize)(halite_stream stream, uint64_t timeout_ns, halite_completion *out,
                                        halite_error *error);

    /* Tier 1: events. The host records each at most once, and asks and waits for recorded ones alone. */

    halite_status (*event_create)(halite_device device, halite_event *out, halite_error *error);
    /* Gives an event back, which may be pending still. */
    void (*event_destroy)(halite_event event);
    /* Makes the event stand for everything enqueued on the stream so far. Works on a failed stream. */
    halite_status (*event_record)(halite_stream stream, halite_event event, halite_error *error);
    /* Waits as stream_synchronize does. */
    halite_status (*event_wait)(halite_event event, uint64_t timeout_ns, halite_completion *out,
                                halite_error *error);
    /* Says where the event's work stands, without waiting. */
    halite_status (*event_query)(halite_event event, halite_completion *out, halite_error *error);

    /* Optional, in any plugin. */

    /* Device time between two events that are over; 0 in the other order. */
    halite_status (*event_elapsed)(halite_event earlier, halite_event later, uint64_t *nanoseconds,
                                   halite_error *error);
    /* Forgets the failure of a stream whose work has been reported over, by stream_synchronize or by an event behind it.
     * A thread of the plugin may still be on its way out of that work. Without it, the host makes a new stream. */
    halite_status (*stream_reset)(halite_stream stream, halite_error *error);
    /* OK, or DEVICE_LOST with the reason. */
    halite_status (*device_health)(halite_device device, halite_error *error);
    /* Sets *count to the number of counters, and writes the first `capacity` of them. */
    halite_status (*device_counters)(halite_device device, uint32_t capacity, halite_counter *const *out,
                                     uint32_t *count, halite_error *error);
    /* A vendor's own functions, under a name like "vendor.thing"; NULL when there are none of that name. What it
     * points to is valid for the life of the process. */
    const void *(*get_extension)(const char *name);

    /* Tier 2a: built-in operations. */

    /* What builtin_prepare would answer: OK; INVALID_ARGUMENT for what no device could run (a wrong number of operands,
     * shapes or types that do not go together, a missing attribute); UNSUPPORTED with the reason for the rest. */
    halite_status (*builtin_validate)(halite_device device, const halite_builtin_desc *desc, halite_error *error);
    /* Makes an operation ready. *workspace_bytes is the scratch memory that each enqueued run needs for itself. */
    halite_status (*builtin_prepare)(halite_device device, const halite_builtin_desc *desc, halite_builtin *out,
                                     uint64_t *workspace_bytes, halite_error *error);
    void (*builtin_release)(halite_device device, halite_builtin builtin);
    /* Runs it: a range for each operand, in order, then the workspace if it has one. */
    halite_status (*builtin_enqueue)(halite_stream stream, halite_builtin builtin, uint32_t range_count,
                                     const halite_range *const *ranges, halite_error *error);

    /* Tier 2b: programs. */

    /* Checks and loads a program. bytes may go when the call returns. */
    halite_status (*program_load)(halite_device device, const void *bytes, uint64_t length, halite_program *out,
                                  halite_error *error);
    void (*program_unload)(halite_device device, halite_program program);
    /* Finds a kernel by name. It lives as long as its program. UNAVAILABLE, naming those there are, without it. */
    halite_status (*kernel_find)(halite_program program, const char *name, halite_kernel *out, halite_error *error);
    /* Runs block_count (at least 1) blocks. */
    halite_status (*kernel_launch)(halite_stream stream, halite_kernel kernel, uint32_t block_count,
                                   uint32_t argument_count, const halite_argument *const *arguments,
                                   halite_error *error);
    /* Optional: what the kernel takes, so that a program and its user are checked against each other. */
    halite_status (*kernel_info)(halite_kernel kernel, halite_kernel_info *out, halite_error *error);
    halite_status (*kernel_argument)(halite_kernel kernel, uint32_t index, halite_argument_info *out,
                                     halite_error *error);

    /* Since 1.1. Optional, in any plugin. */

    /* Makes memory of the host, as it is, memory of the device: copies and kernels use it in place. The pointer is a
     * multiple of import_alignment_bytes, and valid until memory_free gives the handle back, when no work uses it. It
     * counts nothing in memory_info. */
    halite_status (*memory_import)(halite_device device, void *pointer, uint64_t length, halite_memory *out,
                                   halite_error *error);
    /* OK if stream_copy_peer on streams of `device` can read memory of `peer`, which is another open device of this
     * plugin; UNSUPPORTED if no link leads there. From then on, stream_wait_event on these streams takes events of
     * `peer` too. `peer` stays open while a stream copies from it. Links take both functions. */
    halite_status (*peer_enable)(halite_device device, halite_device peer, halite_error *error);
    /* Copies from memory of an enabled peer to the stream's device. If the peer is lost, or the link fails, the work
     * fails with HALITE_STATUS_LINK; so does that of a stream that waits for an event of a lost peer. DEVICE_LOST would
     * be the loss of the stream's own device. */
    halite_status (*stream_copy_peer)(halite_stream stream, halite_memory dst, uint64_t dst_offset, halite_device peer,
                                      halite_memory src, uint64_t src_offset, uint64_t length, halite_error *error);
} halite_plugin;

/* The one exported symbol. Sets *out to the table; touches no device. If it cannot serve host->abi_major, it returns
 * HALITE_STATUS_ABI_MISMATCH, or simply its own table: the host compares. May be called more than once. */
HALITE_PLUGIN_EXPORT halite_status halite_plugin_entry(const halite_host *host, const halite_plugin **out,
                                                       halite_error *error);

#ifdef __cplusplus
}
#endif

#endif
