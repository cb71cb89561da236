/* The smallest plugin that does everything a plugin must: one device whose memory is the host's and whose work is done
 * when the call that enqueues it returns. The loader's test subject: each LIE_* breaks one rule. (To start a plugin of
 * your own from, see example-plugin/example.c.) */
#include "halite_plugin.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef LIE_MAJOR
#define LIE_MAJOR HALITE_ABI_MAJOR
#endif
#ifndef LIE_COUNT
#define LIE_COUNT 1
#endif
#ifndef LIE_ALIGNMENT
#define LIE_ALIGNMENT 4
#endif
#ifndef LIE_DTYPES
#define LIE_DTYPES (UINT64_C(1) << HALITE_DTYPE_F32)
#endif

#define MEMORY_BYTES (UINT64_C(1) << 20)

/* The handles are addresses of these. An event keeps what its stream's failure was when it was recorded. */
typedef struct {
    uint64_t used;
} device;
typedef struct {
    uint64_t length;
    uint64_t bytes[1];
} memory;
typedef struct {
    device *device;
    halite_status failure;
} stream;
typedef struct {
    halite_status failure;
} event;
typedef struct {
    char name[8];
    uint64_t count;
    uint64_t bits;
} builtin;

#define AS(type, handle) ((type *)(uintptr_t)(handle))
#define HANDLE(pointer) ((uint64_t)(uintptr_t)(pointer))

static halite_status fail(halite_error *error, halite_status status, const char *text) {
    if (error->text_capacity > 0)
        snprintf(error->text, (size_t)error->text_capacity, "%s", text);
    return status;
}

static halite_status device_count(uint32_t *out, halite_error *error) {
    (void)error;
#ifdef LIE_NO_HARDWARE
    return fail(error, HALITE_STATUS_UNAVAILABLE, "no card is plugged in");
#endif
    *out = LIE_COUNT;
    return HALITE_STATUS_OK;
}

static halite_status device_info(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                 halite_device_info *out, halite_error *error) {
    halite_device_info info;
    (void)index, (void)options;
    if (option_count > 0)
        return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "no option is known");
    memset(&info, 0, sizeof info);
    info.struct_size = out->struct_size;
    strcpy(info.name, "minimal device");
    strcpy(info.vendor, "nobody");
    info.memory_bytes = MEMORY_BYTES;
    info.max_allocation_bytes = MEMORY_BYTES / 2;
    info.offset_alignment_bytes = LIE_ALIGNMENT;
    info.dtype_mask = LIE_DTYPES;
    info.memory_kind_mask = 1u << HALITE_MEMORY_DEVICE;
    info.compute_units = 1;
    info.max_arguments = 4;
#ifdef LIE_ENDLESS_TEXT
    memset(info.name, 'x', sizeof info.name);
    memset(info.capabilities, ',', sizeof info.capabilities);
#endif
#ifdef LIE_SIZE
    info.struct_size = 1 << 20;
#endif
#ifdef LIE_NO_MEMORY
    info.memory_bytes = 0;
#endif
    /* Write no byte beyond the host's structure, which may be older than this one. */
    memcpy(out, &info, out->struct_size < sizeof info ? (size_t)out->struct_size : sizeof info);
    return HALITE_STATUS_OK;
}

static halite_status device_open(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                 halite_device *out, halite_error *error) {
    device *opened = calloc(1, sizeof *opened);
    (void)index, (void)option_count, (void)options;
    if (opened == NULL)
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the host is full");
    *out = HANDLE(opened);
#ifdef LIE_NO_HANDLE
    *out = 0;
#endif
    return HALITE_STATUS_OK;
}

static void device_close(halite_device handle) { free(AS(device, handle)); }

static halite_status memory_alloc(halite_device handle, uint32_t kind, uint64_t length, halite_memory *out,
                                  void **host_pointer, halite_error *error) {
    device *owner = AS(device, handle);
    memory *block;
    (void)kind, (void)host_pointer;
#ifdef LIE_STATUS
    return fail(error, LIE_STATUS, "a status of its own");
#endif
    /* Calls come from several threads at once. */
    if (length > MEMORY_BYTES || __atomic_add_fetch(&owner->used, length, __ATOMIC_RELAXED) > MEMORY_BYTES) {
        if (length <= MEMORY_BYTES)
            __atomic_sub_fetch(&owner->used, length, __ATOMIC_RELAXED);
        error->detail[0] = length;
        error->detail[1] = MEMORY_BYTES - __atomic_load_n(&owner->used, __ATOMIC_RELAXED);
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the device is full");
    }
    block = calloc(1, sizeof *block + (size_t)length);
    if (block == NULL) {
        __atomic_sub_fetch(&owner->used, length, __ATOMIC_RELAXED);
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the host is full");
    }
    block->length = length;
    *out = HANDLE(block);
    return HALITE_STATUS_OK;
}

static void memory_free(halite_device handle, halite_memory block) {
    __atomic_sub_fetch(&AS(device, handle)->used, AS(memory, block)->length, __ATOMIC_RELAXED);
    free(AS(memory, block));
}

static halite_status memory_info(halite_device handle, halite_memory_info *out, halite_error *error) {
    (void)error;
    out->total_bytes = MEMORY_BYTES;
    out->free_bytes = MEMORY_BYTES - __atomic_load_n(&AS(device, handle)->used, __ATOMIC_RELAXED);
    return HALITE_STATUS_OK;
}

static halite_status stream_create(halite_device handle, halite_stream *out, halite_error *error) {
    stream *made = calloc(1, sizeof *made);
    if (made == NULL)
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the host is full");
    made->device = AS(device, handle);
    *out = HANDLE(made);
    return HALITE_STATUS_OK;
}

static void stream_destroy(halite_stream handle) { free(AS(stream, handle)); }

static uint8_t *at(halite_memory block, uint64_t offset) { return (uint8_t *)AS(memory, block)->bytes + offset; }

static halite_status stream_write(halite_stream handle, halite_memory dst, uint64_t dst_offset, const void *src,
                                  uint64_t length, halite_error *error) {
    (void)error;
    if (AS(stream, handle)->failure == HALITE_STATUS_OK)
        memcpy(at(dst, dst_offset), src, (size_t)length);
    return HALITE_STATUS_OK;
}

static halite_status stream_read(halite_stream handle, void *dst, halite_memory src, uint64_t src_offset,
                                 uint64_t length, halite_error *error) {
    (void)error;
    if (AS(stream, handle)->failure == HALITE_STATUS_OK)
        memcpy(dst, at(src, src_offset), (size_t)length);
    return HALITE_STATUS_OK;
}

static halite_status stream_copy(halite_stream handle, halite_memory dst, uint64_t dst_offset, halite_memory src,
                                 uint64_t src_offset, uint64_t length, halite_error *error) {
    return stream_write(handle, dst, dst_offset, at(src, src_offset), length, error);
}

static halite_status stream_fill(halite_stream handle, halite_memory dst, uint64_t dst_offset, uint64_t length,
                                 const uint8_t *pattern, uint32_t pattern_length, halite_error *error) {
    uint64_t i;
    (void)error;
#ifdef FAIL_FILLS
    /* Work that fails after the call: what comes behind it on the stream is skipped. */
    if (AS(stream, handle)->failure == HALITE_STATUS_OK)
        AS(stream, handle)->failure = FAIL_FILLS;
#endif
    if (AS(stream, handle)->failure == HALITE_STATUS_OK)
        for (i = 0; i < length; ++i)
            at(dst, dst_offset)[i] = pattern[i % pattern_length];
    return HALITE_STATUS_OK;
}

static halite_status complete(halite_status failure, halite_completion *out, halite_error *error) {
    out->state = HALITE_COMPLETION_DONE;
    if (failure != HALITE_STATUS_OK) {
        out->state = HALITE_COMPLETION_FAILED;
        out->status = failure;
        fail(error, failure, "a fill failed");
    }
#ifdef LIE_STATE
    out->state = LIE_STATE;
#endif
    return HALITE_STATUS_OK;
}

static halite_status stream_wait_event(halite_stream handle, halite_event awaited, halite_error *error) {
    stream *waiting = AS(stream, handle);
    (void)error;
    if (waiting->failure == HALITE_STATUS_OK)
        waiting->failure = AS(event, awaited)->failure;
    return HALITE_STATUS_OK;
}

static halite_status stream_synchronize(halite_stream handle, uint64_t timeout_ns, halite_completion *out,
                                        halite_error *error) {
    (void)timeout_ns;
    return complete(AS(stream, handle)->failure, out, error);
}

static halite_status event_create(halite_device handle, halite_event *out, halite_error *error) {
    event *made = calloc(1, sizeof *made);
    (void)handle;
    if (made == NULL)
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the host is full");
    *out = HANDLE(made);
    return HALITE_STATUS_OK;
}

static void event_destroy(halite_event handle) { free(AS(event, handle)); }

static halite_status event_record(halite_stream handle, halite_event recorded, halite_error *error) {
    (void)error;
    AS(event, recorded)->failure = AS(stream, handle)->failure;
#ifdef LIE_FORGETFUL
    /* Reports a failure once and then goes on as if nothing had happened. */
    AS(stream, handle)->failure = HALITE_STATUS_OK;
#endif
    return HALITE_STATUS_OK;
}

static halite_status event_query(halite_event handle, halite_completion *out, halite_error *error) {
    return complete(AS(event, handle)->failure, out, error);
}

static halite_status event_wait(halite_event handle, uint64_t timeout_ns, halite_completion *out,
                                halite_error *error) {
    (void)timeout_ns;
    return event_query(handle, out, error);
}

/* Built-ins of dense f32: copy, fill and add. */
static halite_status builtin_validate(halite_device handle, const halite_builtin_desc *desc, halite_error *error) {
    uint32_t operand, axis;
    (void)handle;
    if (strcmp(desc->name, "copy") != 0 && strcmp(desc->name, "fill") != 0 && strcmp(desc->name, "add") != 0)
        return fail(error, HALITE_STATUS_UNSUPPORTED, "there are copy, fill and add");
    for (operand = 0; operand < desc->operand_count; ++operand) {
        const halite_operand *o = desc->operands[operand];
        int64_t step = 1;
        if (o->dtype != HALITE_DTYPE_F32)
            return fail(error, HALITE_STATUS_UNSUPPORTED, "only f32");
        for (axis = o->rank; axis-- > 0; step *= (int64_t)o->shape[axis])
            if (o->strides[axis] != step && o->shape[axis] > 1)
                return fail(error, HALITE_STATUS_UNSUPPORTED, "only dense operands");
    }
    return HALITE_STATUS_OK;
}

static halite_status builtin_prepare(halite_device handle, const halite_builtin_desc *desc, halite_builtin *out,
                                     uint64_t *workspace_bytes, halite_error *error) {
    const halite_operand *result = desc->operands[desc->operand_count - 1];
    halite_status status = builtin_validate(handle, desc, error);
    builtin *made;
    uint32_t i;
    if (status != HALITE_STATUS_OK)
        return status;
    made = calloc(1, sizeof *made);
    if (made == NULL)
        return fail(error, HALITE_STATUS_OUT_OF_MEMORY, "the host is full");
    strcpy(made->name, desc->name);
    made->count = 1;
    for (i = 0; i < result->rank; ++i)
        made->count *= result->shape[i];
    for (i = 0; i < desc->attribute_count; ++i)
        if (strcmp(desc->attributes[i]->key, "value_bits") == 0)
            made->bits = desc->attributes[i]->bits;
    *out = HANDLE(made);
    *workspace_bytes = 16;
#ifdef LIE_WORKSPACE
    *workspace_bytes = UINT64_MAX;
#endif
    return HALITE_STATUS_OK;
}

static void builtin_release(halite_device handle, halite_builtin prepared) {
    (void)handle;
    free(AS(builtin, prepared));
}

static halite_status builtin_enqueue(halite_stream handle, halite_builtin prepared, uint32_t range_count,
                                     const halite_range *const *ranges, halite_error *error) {
    const builtin *op = AS(builtin, prepared);
    /* The workspace is the last range; the result comes before it. */
    const halite_range *result = ranges[range_count - 2];
    uint64_t i;
    if (ranges[range_count - 1]->length < 16)
        return fail(error, HALITE_STATUS_INVALID_ARGUMENT, "no workspace");
    for (i = 0; AS(stream, handle)->failure == HALITE_STATUS_OK && i < op->count; ++i) {
        float values[2], sum;
        uint32_t bits = (uint32_t)op->bits, operand;
        for (operand = 0; operand + 2 < range_count; ++operand)
            memcpy(&values[operand], at(ranges[operand]->memory, ranges[operand]->offset + 4 * i), 4);
        if (op->name[0] == 'c')
            memcpy(&bits, &values[0], 4);
        if (op->name[0] == 'a') {
            sum = values[0] + values[1];
            memcpy(&bits, &sum, 4);
        }
        memcpy(at(result->memory, result->offset + 4 * i), &bits, 4);
    }
    return HALITE_STATUS_OK;
}

static halite_plugin table;

HALITE_PLUGIN_EXPORT halite_status halite_plugin_entry(const halite_host *host, const halite_plugin **out,
                                                       halite_error *error) {
#ifdef LIE_REFUSES
    return fail(error, HALITE_STATUS_UNAVAILABLE, "no\ndriver");
#endif
    (void)error;
    if (host->log != NULL)
        host->log(4, "the minimal plugin starts");
    table.struct_size = sizeof table;
    table.abi_major = LIE_MAJOR;
    table.abi_minor = HALITE_ABI_MINOR;
    table.features = HALITE_FEATURE_BUILTINS;
    strcpy(table.name, "minimal");
    strcpy(table.version, "1.0");
    table.device_count = device_count;
    table.device_info = device_info;
    table.device_open = device_open;
    table.device_close = device_close;
    table.memory_alloc = memory_alloc;
    table.memory_free = memory_free;
    table.memory_info = memory_info;
    table.stream_create = stream_create;
    table.stream_destroy = stream_destroy;
    table.stream_write = stream_write;
    table.stream_read = stream_read;
    table.stream_copy = stream_copy;
    table.stream_fill = stream_fill;
    table.stream_wait_event = stream_wait_event;
    table.stream_synchronize = stream_synchronize;
    table.event_create = event_create;
    table.event_destroy = event_destroy;
    table.event_record = event_record;
    table.event_wait = event_wait;
    table.event_query = event_query;
    table.builtin_validate = builtin_validate;
    table.builtin_prepare = builtin_prepare;
    table.builtin_release = builtin_release;
    table.builtin_enqueue = builtin_enqueue;
#ifdef LIE_TABLE_SIZE
    table.struct_size = LIE_TABLE_SIZE;
#endif
#ifdef LIE_MISSING
    table.LIE_MISSING = NULL;
#endif
#ifdef LIE_FEATURES
    table.features = LIE_FEATURES;
#endif
    *out = &table;
#ifdef LIE_NO_TABLE
    *out = NULL;
#endif
    return HALITE_STATUS_OK;
}
