/* A complete Halite plugin in C99, to learn from and to start from: tier 1, and the built-ins copy, fill, add, fault.
 *
 * Its one device is a part of the host: device memory is host memory, and a stream does its work inside of the call
 * that enqueues it, so nothing is ever pending; docs/writing-a-plugin.md leads to this file and says what changes with
 * a queue. Work fails here on request alone: by the built-in fault. */
#define _POSIX_C_SOURCE 200809L
#include "halite_plugin.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MEMORY_BYTES (UINT64_C(256) << 20)
#define MAX_ALLOCATION_BYTES (MEMORY_BYTES / 2)
#define ALIGNMENT_BYTES 64 /* that the interface demands of allocations */
#define MAX_RANK 16
/* Every element type but f16 and bf16, which C cannot add. */
#define DTYPES ((UINT64_C(1) << (HALITE_DTYPE_F64 + 1)) - 1 - (UINT64_C(3) << HALITE_DTYPE_F16))
static const uint8_t element_size[] = {1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8}; /* by HALITE_DTYPE_* */

/* A handle is the address of one of these. */
typedef struct {
    pthread_mutex_t lock; /* guards used_bytes: calls come from several threads at once */
    uint64_t used_bytes;
} device;
typedef struct { uint64_t length; uint8_t *bytes; } memory; /* imported bytes are the host's: length 0, not counted */
typedef struct {
    halite_status failure; /* the first one; what comes behind it is skipped */
} stream;
typedef struct { halite_status failure; uint64_t time_ns; } event; /* the stream's, when the event was recorded */
typedef struct {
    char name; /* 'c'opy, 'f'ill, 'a'dd or '!' for fault */
    uint32_t dtype, operands;
    int rank, empty;
    uint64_t bits, shape[MAX_RANK];
    int64_t steps[3][MAX_RANK]; /* bytes from one element to the next, per operand and axis */
    uint64_t needed[3];         /* bytes that an operand's range must have */
} builtin;

#define AS(type, handle) ((type *)(uintptr_t)(handle))
#define HANDLE(pointer) ((uint64_t)(uintptr_t)(pointer))

static halite_status fail(halite_error *error, halite_status status, const char *text) {
    snprintf(error->text, (size_t)error->text_capacity, "%s", text);
    return status;
}

static halite_status make(size_t size, uint64_t *out, halite_error *error) {
    *out = HANDLE(calloc(1, size));
    return *out == 0 ? fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the host is full") : HALITE_STATUS_OK;
}

/* Devices. */
static halite_status device_count(uint32_t *out, halite_error *error) {
    (void)error; /* where a driver is needed and absent: return fail(error, HALITE_STATUS_UNAVAILABLE, "no driver") */
    *out = 1;
    return HALITE_STATUS_OK;
}

static halite_status check_open(uint32_t index, uint32_t count, const halite_option *const *options,
                                halite_error *error) {
    if (index != 0)
        return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "there is device 0 alone");
    if (count == 0)
        return HALITE_STATUS_OK;
    snprintf(error->text, (size_t)error->text_capacity, "no option is '%s'; this device has none", options[0]->key);
    return HALITE_STATUS_INVALID_ARGUMENT;
}

static halite_status device_info(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                 halite_device_info *out, halite_error *error) {
    halite_status status = check_open(index, option_count, options, error);
    const halite_device_info info = {
        .struct_size = out->struct_size, /* stays as the host has set it */
        .name = "Halite example device", .vendor = "Halite", .driver_version = "1.0",
        .memory_bytes = MEMORY_BYTES, .max_allocation_bytes = MAX_ALLOCATION_BYTES,
        .offset_alignment_bytes = 1, .dtype_mask = DTYPES, .compute_units = 1, .max_arguments = 4,
        .memory_kind_mask = 1u << HALITE_MEMORY_DEVICE | 1u << HALITE_MEMORY_HOST_VISIBLE | 1u << HALITE_MEMORY_PINNED,
        .capabilities = "emulated", .import_alignment_bytes = 1,
    };
    /* No byte beyond the host's structure, which may be older or newer than this file. */
    if (status == HALITE_STATUS_OK)
        memcpy(out, &info, out->struct_size < sizeof info ? (size_t)out->struct_size : sizeof info);
    return status;
}

static halite_status device_open(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                 halite_device *out, halite_error *error) {
    halite_status status = check_open(index, option_count, options, error);
    if (status == HALITE_STATUS_OK && (status = make(sizeof(device), out, error)) == HALITE_STATUS_OK)
        pthread_mutex_init(&AS(device, *out)->lock, NULL);
    return status;
}

static void device_close(halite_device handle) {
    pthread_mutex_destroy(&AS(device, handle)->lock);
    free(AS(device, handle));
}

/* Memory. */
static halite_status memory_alloc(halite_device handle, uint32_t kind, uint64_t length, halite_memory *out,
                                  void **host_pointer, halite_error *error) {
    device *d = AS(device, handle);
    void *block = NULL;
    uint64_t free_bytes;
    /* Too large is for good; out of memory may pass. The numbers tell the user how far it was. */
    error->detail[0] = length, error->detail[1] = MAX_ALLOCATION_BYTES;
    if (length > MAX_ALLOCATION_BYTES)
        return fail(error, HALITE_STATUS_TOO_LARGE, "no allocation is larger than half of the memory");
    pthread_mutex_lock(&d->lock);
    free_bytes = MEMORY_BYTES - d->used_bytes;
    if (length <= free_bytes && posix_memalign(&block, ALIGNMENT_BYTES, ALIGNMENT_BYTES + (size_t)length) == 0)
        d->used_bytes += length;
    pthread_mutex_unlock(&d->lock);
    error->detail[1] = free_bytes;
    if (block == NULL)
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the device is full");
    *out = HANDLE(block);
    *AS(memory, *out) = (memory){length, (uint8_t *)block + ALIGNMENT_BYTES};
    *host_pointer = kind == HALITE_MEMORY_DEVICE ? NULL : AS(memory, *out)->bytes;
    return HALITE_STATUS_OK;
}

static halite_status memory_import(halite_device handle, void *pointer, uint64_t length, halite_memory *out,
                                   halite_error *error) {
    halite_status status = make(sizeof(memory), out, error);
    (void)handle, (void)length;
    if (status == HALITE_STATUS_OK)
        AS(memory, *out)->bytes = pointer;
    return status;
}

static void memory_free(halite_device handle, halite_memory block) {
    device *d = AS(device, handle);
    pthread_mutex_lock(&d->lock);
    d->used_bytes -= AS(memory, block)->length;
    pthread_mutex_unlock(&d->lock);
    free(AS(memory, block));
}

static halite_status memory_info(halite_device handle, halite_memory_info *out, halite_error *error) {
    halite_memory_info info = {.struct_size = out->struct_size, .total_bytes = MEMORY_BYTES};
    (void)error;
    pthread_mutex_lock(&AS(device, handle)->lock);
    info.free_bytes = MEMORY_BYTES - AS(device, handle)->used_bytes;
    pthread_mutex_unlock(&AS(device, handle)->lock);
    memcpy(out, &info, out->struct_size < sizeof info ? (size_t)out->struct_size : sizeof info);
    return HALITE_STATUS_OK;
}

/* The host has checked that ranges lie inside of their memory. */
static uint8_t *at(halite_memory block, uint64_t offset) { return AS(memory, block)->bytes + offset; }

/* Streams. */
static halite_status stream_create(halite_device handle, halite_stream *out, halite_error *error) {
    (void)handle;
    return make(sizeof(stream), out, error);
}

static void stream_destroy(halite_stream handle) { free(AS(stream, handle)); }

/* Whether the next piece of work runs: not behind a failure. The host never enqueues on one stream from two threads at
 * once, so this needs no lock. */
static int runs(const stream *s) { return s->failure == HALITE_STATUS_OK; }

static halite_status stream_write(halite_stream handle, halite_memory dst, uint64_t dst_offset, const void *src,
                                  uint64_t length, halite_error *error) {
    (void)error; /* the call succeeds also where the work fails: that is for the event behind it to say */
    if (runs(AS(stream, handle)))
        memcpy(at(dst, dst_offset), src, (size_t)length);
    return HALITE_STATUS_OK;
}

static halite_status stream_read(halite_stream handle, void *dst, halite_memory src, uint64_t src_offset,
                                 uint64_t length, halite_error *error) {
    (void)error;
    if (runs(AS(stream, handle)))
        memcpy(dst, at(src, src_offset), (size_t)length);
    return HALITE_STATUS_OK;
}

static halite_status stream_copy(halite_stream handle, halite_memory dst, uint64_t dst_offset, halite_memory src,
                                 uint64_t src_offset, uint64_t length, halite_error *error) {
    return stream_write(handle, dst, dst_offset, at(src, src_offset), length, error);
}

/* Every device's memory is the host's, and nothing is ever pending, so each may read the others'. */
static halite_status peer_enable(halite_device handle, halite_device peer, halite_error *error) {
    (void)handle, (void)peer, (void)error;
    return HALITE_STATUS_OK;
}

static halite_status stream_copy_peer(halite_stream handle, halite_memory dst, uint64_t dst_offset, halite_device peer,
                                      halite_memory src, uint64_t src_offset, uint64_t length, halite_error *error) {
    (void)peer;
    return stream_copy(handle, dst, dst_offset, src, src_offset, length, error);
}

static halite_status stream_fill(halite_stream handle, halite_memory dst, uint64_t dst_offset, uint64_t length,
                                 const uint8_t *pattern, uint32_t pattern_length, halite_error *error) {
    (void)error;
    if (runs(AS(stream, handle)))
        for (uint64_t i = 0; i < length; i += pattern_length)
            memcpy(at(dst, dst_offset + i), pattern, pattern_length);
    return HALITE_STATUS_OK;
}

/* The event is over already, so there is nothing to hold back; its failure becomes the stream's. */
static halite_status stream_wait_event(halite_stream handle, halite_event awaited, halite_error *error) {
    (void)error;
    if (AS(stream, handle)->failure == HALITE_STATUS_OK)
        AS(stream, handle)->failure = AS(event, awaited)->failure;
    return HALITE_STATUS_OK;
}

/* The call succeeds, also when it reports that the work has failed. */
static halite_status report(halite_status failure, halite_completion *out, halite_error *error) {
    out->state = failure == HALITE_STATUS_OK ? HALITE_COMPLETION_DONE : HALITE_COMPLETION_FAILED;
    out->status = failure;
    if (failure != HALITE_STATUS_OK)
        fail(error, failure, "the built-in fault ran, which fails");
    return HALITE_STATUS_OK;
}

static halite_status stream_synchronize(halite_stream handle, uint64_t timeout_ns, halite_completion *out,
                                        halite_error *error) {
    (void)timeout_ns; /* nothing is pending; see the guide for one that waits */
    return report(AS(stream, handle)->failure, out, error);
}

/* Events. */
static halite_status event_create(halite_device handle, halite_event *out, halite_error *error) {
    (void)handle;
    return make(sizeof(event), out, error);
}

static void event_destroy(halite_event handle) { free(AS(event, handle)); }

static halite_status event_record(halite_stream handle, halite_event recorded, halite_error *error) {
    event *e = AS(event, recorded);
    struct timespec now;
    (void)error;
    clock_gettime(CLOCK_MONOTONIC, &now); /* a clock that never runs backwards, unlike the wall's */
    e->time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    e->failure = AS(stream, handle)->failure;
    return HALITE_STATUS_OK;
}

static halite_status event_query(halite_event handle, halite_completion *out, halite_error *error) {
    return report(AS(event, handle)->failure, out, error);
}

static halite_status event_wait(halite_event handle, uint64_t timeout_ns, halite_completion *out, halite_error *error) {
    (void)timeout_ns;
    return event_query(handle, out, error);
}

static halite_status event_elapsed(halite_event earlier, halite_event later, uint64_t *nanoseconds,
                                   halite_error *error) {
    uint64_t from = AS(event, earlier)->time_ns, to = AS(event, later)->time_ns;
    (void)error;
    *nanoseconds = to > from ? to - from : 0;
    return HALITE_STATUS_OK;
}

/* Built-ins. Of a description, what no device could do is invalid, and what is beyond this one is unsupported. */
static halite_status describe(const halite_builtin_desc *desc, builtin *b, halite_error *error) {
    const struct { const char *name; uint32_t operands; char letter; } known[] = {
        {"fill", 1, 'f'}, {"copy", 2, 'c'}, {"add", 3, 'a'}, {"fault", 1, '!'}};
    const halite_operand *first;
    memset(b, 0, sizeof *b);
    for (size_t i = 0; i < sizeof known / sizeof *known; ++i)
        if (strcmp(desc->name, known[i].name) == 0)
            b->name = known[i].letter, b->operands = known[i].operands;
    if (b->name == 0)
        return fail(error, HALITE_STATUS_UNSUPPORTED, "the built-ins are copy, fill, add and fault");
    if (desc->operand_count != b->operands)
        return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "fill and fault take 1 operand, copy 2, add 3");
    first = desc->operands[0];
    if (first->dtype > HALITE_DTYPE_F64 || (DTYPES >> first->dtype & 1) == 0 || first->rank > MAX_RANK)
        return fail(error, HALITE_STATUS_UNSUPPORTED, "no f16, no bf16, and at most 16 axes");
    if (b->name == 'a' && first->dtype == HALITE_DTYPE_BOOL)
        return fail(error, HALITE_STATUS_UNSUPPORTED, "bool cannot be added");
    if (b->name == 'f' && (desc->attribute_count == 0 || strcmp(desc->attributes[0]->key, "value_bits") != 0))
        return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "fill needs the attribute value_bits");
    b->bits = b->name == 'f' ? desc->attributes[0]->bits : 0; /* its low bytes come first: the host is little-endian */
    b->dtype = first->dtype, b->rank = (int)first->rank;
    for (uint32_t i = 0; i < b->operands; ++i) {
        const halite_operand *o = desc->operands[i];
        int agree = o->dtype == first->dtype && o->rank == first->rank;
        b->needed[i] = element_size[b->dtype];
        for (int axis = 0; agree && axis < b->rank; ++axis) {
            uint64_t extent = o->shape[axis], stride = extent > 1 ? (uint64_t)o->strides[axis] : 0;
            agree = extent == first->shape[axis];
            b->shape[axis] = extent, b->empty |= extent == 0;
            b->steps[i][axis] = (int64_t)(stride * element_size[b->dtype]);
            /* What is larger than the device never fits; neither does a negative stride, which leaves the range. */
            if (stride > 0 && (stride > MEMORY_BYTES || extent > MEMORY_BYTES / stride))
                b->needed[i] = UINT64_MAX / 2;
            else if (stride > 0)
                b->needed[i] += (extent - 1) * stride * element_size[b->dtype];
        }
        if (!agree)
            return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "types and shapes of all operands must agree");
    }
    return HALITE_STATUS_OK;
}

static halite_status builtin_validate(halite_device handle, const halite_builtin_desc *desc, halite_error *error) {
    (void)handle;
    return describe(desc, &(builtin){0}, error);
}

static halite_status builtin_prepare(halite_device handle, const halite_builtin_desc *desc, halite_builtin *out,
                                     uint64_t *workspace_bytes, halite_error *error) {
    halite_status status = make(sizeof(builtin), out, error);
    (void)handle;
    *workspace_bytes = 0;
    if (status == HALITE_STATUS_OK && (status = describe(desc, AS(builtin, *out), error)) != HALITE_STATUS_OK)
        free(AS(builtin, *out));
    return status;
}

static void builtin_release(halite_device handle, halite_builtin prepared) {
    (void)handle;
    free(AS(builtin, prepared));
}

/* out = lhs + rhs for one element. Unsigned types, whose sums wrap, serve for signed ones: the bits are the same. */
static void add(uint32_t dtype, uint8_t *out, const uint8_t *lhs, const uint8_t *rhs) {
#define SUM(type) { type l, r; memcpy(&l, lhs, sizeof l); memcpy(&r, rhs, sizeof r); \
                    l = (type)(l + r); memcpy(out, &l, sizeof l); }
    switch (dtype) {
    case HALITE_DTYPE_F32: SUM(float) break;
    case HALITE_DTYPE_F64: SUM(double) break;
    case HALITE_DTYPE_I8: case HALITE_DTYPE_U8: SUM(uint8_t) break;
    case HALITE_DTYPE_I16: case HALITE_DTYPE_U16: SUM(uint16_t) break;
    case HALITE_DTYPE_I32: case HALITE_DTYPE_U32: SUM(uint32_t) break;
    default: SUM(uint64_t) break;
    }
}

/* Runs from this axis inwards; `p` holds the operands' addresses, the result's last. */
static void walk(const builtin *b, int axis, uint8_t *const p[3]) {
    uint8_t *next[3] = {p[0], p[1], p[2]}, *out = p[b->operands - 1];
    if (axis == b->rank && b->name == 'a')
        add(b->dtype, out, p[0], p[1]);
    else if (axis == b->rank)
        memmove(out, b->name == 'c' ? p[0] : (const uint8_t *)&b->bits, element_size[b->dtype]);
    else
        for (uint64_t i = 0; i < b->shape[axis]; ++i) {
            walk(b, axis + 1, next);
            for (uint32_t operand = 0; operand < b->operands; ++operand)
                next[operand] += b->steps[operand][axis];
        }
}

static halite_status builtin_enqueue(halite_stream handle, halite_builtin prepared, uint32_t range_count,
                                     const halite_range *const *ranges, halite_error *error) {
    const builtin *b = AS(builtin, prepared);
    uint8_t *p[3] = {NULL, NULL, NULL};
    for (uint32_t i = 0; i < b->operands && !b->empty; ++i) {
        if (range_count != b->operands || ranges[i]->length < b->needed[i])
            return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "a range is shorter than the layout of its operand");
        p[i] = at(ranges[i]->memory, ranges[i]->offset);
    }
    if (runs(AS(stream, handle)) && b->name == '!')
        AS(stream, handle)->failure = HALITE_STATUS_FAULT;
    else if (runs(AS(stream, handle)) && !b->empty)
        walk(b, 0, p);
    return HALITE_STATUS_OK;
}

/* The table. What is not named (stream_reset, counters, programs, ...) is NULL. */
static const halite_plugin table = {
    .struct_size = sizeof table, .abi_major = HALITE_ABI_MAJOR, .abi_minor = HALITE_ABI_MINOR,
    .features = HALITE_FEATURE_BUILTINS, .name = "Halite example", .version = "1.0",
    .device_count = device_count, .device_info = device_info, .device_open = device_open, .device_close = device_close,
    .memory_alloc = memory_alloc, .memory_free = memory_free, .memory_info = memory_info,
    .memory_import = memory_import, .stream_create = stream_create, .stream_destroy = stream_destroy,
    .stream_write = stream_write, .stream_read = stream_read, .stream_copy = stream_copy, .stream_fill = stream_fill,
    .stream_wait_event = stream_wait_event, .stream_synchronize = stream_synchronize, .event_create = event_create,
    .event_destroy = event_destroy, .event_record = event_record, .event_wait = event_wait, .event_query = event_query,
    .event_elapsed = event_elapsed, .builtin_validate = builtin_validate, .builtin_prepare = builtin_prepare,
    .builtin_release = builtin_release, .builtin_enqueue = builtin_enqueue,
    .peer_enable = peer_enable, .stream_copy_peer = stream_copy_peer,
};

halite_status halite_plugin_entry(const halite_host *host, const halite_plugin **out, halite_error *error) {
    (void)host, (void)error;
    *out = &table;
    return HALITE_STATUS_OK;
}
