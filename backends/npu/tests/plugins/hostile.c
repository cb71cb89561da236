/* A plugin that breaks a rule of the interface: the one that its file name says, libhalite_npu_hostile_RULE.so or
 * libhalite_npu_hostile_RULE-NUMBER.so. In everything else it is the minimal plugin. Compiled once; each test loads
 * a copy under another name. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#define halite_plugin_entry minimal_entry
#include "minimal.c"
#undef halite_plugin_entry

static const halite_host *the_host;
static char rule[64];
static uint64_t number;

static int is(const char *name) { return strcmp(rule, name) == 0; }

static void read_rule(void) {
    const char prefix[] = "hostile_";
    const char *start;
    char *dash;
    Dl_info self;
    if (dladdr((void *)(uintptr_t)read_rule, &self) == 0 || (start = strstr(self.dli_fname, prefix)) == NULL)
        return;
    snprintf(rule, sizeof rule, "%.*s", (int)strcspn(start + sizeof prefix - 1, "."), start + sizeof prefix - 1);
    if ((dash = strchr(rule, '-')) != NULL) {
        number = strtoull(dash + 1, NULL, 0);
        *dash = '\0';
    }
}

static void hang_if(const char *name) {
    while (is(name)) {
        struct timespec second = {1, 0};
        nanosleep(&second, NULL);
    }
}

/* What a plugin writes that was built for a later version and does not look at struct_size. */
static void write_too_far(void *out, uint64_t size) { memset((char *)out + size, 0xEE, 40); }

static halite_status bad_device_count(uint32_t *out, halite_error *error) {
    hang_if("hang_count");
    if (is("count")) {
        *out = (uint32_t)number;
        return HALITE_STATUS_OK;
    }
    if (is("silent_count"))
        return HALITE_STATUS_OK;
    return device_count(out, error);
}

static halite_status bad_device_info(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                     halite_device_info *out, halite_error *error) {
    halite_status status;
    hang_if("hang_info");
    if (is("silent_info"))
        return HALITE_STATUS_OK;
    status = device_info(index, option_count, options, out, error);
    if (is("memory"))
        out->memory_bytes = out->max_allocation_bytes = number;
    if (is("allocation"))
        out->max_allocation_bytes = number;
    if (is("alignment"))
        out->offset_alignment_bytes = number;
    if (is("arguments"))
        out->max_arguments = (uint32_t)number;
    if (is("units"))
        out->compute_units = (uint32_t)number;
    if (is("kinds"))
        out->memory_kind_mask = (uint32_t)number;
    if (is("host_null") || is("host_misaligned") || is("host_same") || is("host_beyond"))
        out->memory_kind_mask = 7;
    if (is("import_missing") || is("import_silent") || is("import_same"))
        out->import_alignment_bytes = 64;
    if (is("import_alignment"))
        out->import_alignment_bytes = number;
    strcpy(out->program_format, "npu-program");
    if (is("info_too_far"))
        write_too_far(out, out->struct_size);
    if (is("name_endless")) {
        memset(out->name, 'n', sizeof out->name);
        memset(out->vendor, 'v', sizeof out->vendor);
        memset(out->driver_version, 'd', sizeof out->driver_version);
        memset(out->program_format, 'p', sizeof out->program_format);
        memset(out->capabilities, 'c', sizeof out->capabilities);
    }
    if (is("name_not_utf8"))
        memcpy(out->name, "\xFF\xFE x\xC3", 6);
    if (is("name_control"))
        memcpy(out->name, "a\x1B[2J\r\nb\x07", 10);
    if (is("name_empty"))
        out->name[0] = 0;
    return status;
}

static halite_status bad_device_open(uint32_t index, uint32_t option_count, const halite_option *const *options,
                                     halite_device *out, halite_error *error) {
    static halite_device first;
    halite_status status;
    hang_if("hang_open");
    if (is("silent_open"))
        return HALITE_STATUS_OK;
    if (is("same_device") && first != 0) {
        *out = first;
        return HALITE_STATUS_OK;
    }
    status = device_open(index, option_count, options, out, error);
    first = *out;
    return status;
}

static halite_status bad_memory_alloc(halite_device handle, uint32_t kind, uint64_t length, halite_memory *out,
                                      void **host_pointer, halite_error *error) {
    static halite_memory first;
    halite_status status;
    if (is("silent_alloc"))
        return HALITE_STATUS_OK;
    if (is("status")) {
        fail(error, HALITE_STATUS_OK, "of its own");
        return (halite_status)(int64_t)number;
    }
    if (is("text_endless")) {
        memset(error->text, 'x', (size_t)error->text_capacity);
        return HALITE_STATUS_FAULT;
    }
    if (is("text_not_utf8"))
        return fail(error, HALITE_STATUS_FAULT, "\xFFno\x1B[2J\nway\xC3");
    if (is("error_too_far"))
        write_too_far(error, error->struct_size);
    if (is("error_size"))
        error->struct_size = number;
    if (is("text_too_far"))
        memset(error->text, 'x', (size_t)error->text_capacity + 40);
    if (is("text_too_far_by_one"))
        memset(error->text, 'x', (size_t)error->text_capacity), error->text[error->text_capacity] = 0;
    if (is("error_too_far") || is("error_size") || is("text_too_far") || is("text_too_far_by_one"))
        return number == 9 ? HALITE_STATUS_FAULT : memory_alloc(handle, kind, length, out, host_pointer, error);
    if (is("error_rewritten")) {
        error->text_capacity = UINT64_MAX;
        error->text = NULL;
        error->detail[0] = error->detail[1] = UINT64_MAX;
        return HALITE_STATUS_OUT_OF_MEMORY;
    }
    if (is("same_memory") && first != 0) {
        *out = first;
        return HALITE_STATUS_OK;
    }
    status = memory_alloc(handle, kind, is("memory") ? 8 : length, out, host_pointer, error);
    first = *out;
    if (is("host_misaligned"))
        *host_pointer = (char *)((uintptr_t)AS(memory, *out)->bytes / 64 * 64) + 4;
    if (is("host_same"))
        *host_pointer = (void *)(uintptr_t)0x10000;
    if (is("host_beyond"))
        *host_pointer = (void *)(UINTPTR_MAX - 63);
    return status;
}

static halite_status bad_memory_info(halite_device handle, halite_memory_info *out, halite_error *error) {
    halite_status status;
    if (is("silent_memory_info"))
        return HALITE_STATUS_OK;
    status = memory_info(handle, out, error);
    if (is("memory_info_free"))
        out->free_bytes = UINT64_MAX;
    if (is("memory_info_size"))
        out->struct_size = 8;
    if (is("memory_info_too_far"))
        write_too_far(out, out->struct_size);
    if (is("memory_info_cleared_too_far"))
        memset((char *)out + out->struct_size, 0, 40);
    return status;
}

static halite_status bad_stream_create(halite_device handle, halite_stream *out, halite_error *error) {
    static halite_stream first;
    halite_status status;
    if (is("silent_stream"))
        return HALITE_STATUS_OK;
    if (is("same_stream") && first != 0) {
        *out = first;
        return HALITE_STATUS_OK;
    }
    status = stream_create(handle, out, error);
    first = *out;
    return status;
}

static halite_status bad_stream_fill(halite_stream handle, halite_memory dst, uint64_t dst_offset, uint64_t length,
                                     const uint8_t *pattern, uint32_t pattern_length, halite_error *error) {
    hang_if("hang_fill");
    if (is("flip"))
        AS(stream, handle)->failure = HALITE_STATUS_LINK;
    if (is("fill_error_too_far"))
        write_too_far(error, error->struct_size);
    return stream_fill(handle, dst, dst_offset, length, pattern, pattern_length, error);
}

static halite_status bad_event_create(halite_device handle, halite_event *out, halite_error *error) {
    return is("silent_event") ? HALITE_STATUS_OK : event_create(handle, out, error);
}

/* What all three calls that tell of completion answer. */
static halite_status lie_about(halite_completion *out, halite_error *error) {
    static unsigned calls;
    if (is("never"))
        out->state = HALITE_COMPLETION_PENDING;
    if (is("completion_state"))
        out->state = (uint32_t)number;
    if (is("completion_status")) {
        out->state = HALITE_COMPLETION_FAILED;
        out->status = (halite_status)(int64_t)number;
        memset(error->text, 'x', (size_t)error->text_capacity);
    }
    if (is("completion_refused"))
        return fail(error, HALITE_STATUS_BACKEND, "cannot tell");
    if (is("completion_too_far"))
        write_too_far(out, out->struct_size);
    /* After a failure: done, failed in another way, pending, ... */
    if (is("flip") && out->state == HALITE_COMPLETION_FAILED)
        switch (calls++ % 4) {
        case 1: out->state = HALITE_COMPLETION_DONE; break;
        case 2: out->status = HALITE_STATUS_DEVICE_LOST; break;
        case 3: out->state = HALITE_COMPLETION_PENDING; break;
        }
    return HALITE_STATUS_OK;
}

static halite_status bad_stream_synchronize(halite_stream handle, uint64_t timeout_ns, halite_completion *out,
                                            halite_error *error) {
    if (is("hang_synchronize") && timeout_ns > 0)
        hang_if("hang_synchronize");
    if (is("hang_synchronize"))
        return HALITE_STATUS_OK;
    stream_synchronize(handle, timeout_ns, out, error);
    return lie_about(out, error);
}

static halite_status bad_event_query(halite_event handle, halite_completion *out, halite_error *error) {
    if (is("hang_wait"))
        return HALITE_STATUS_OK;
    event_query(handle, out, error);
    return lie_about(out, error);
}

static halite_status bad_event_wait(halite_event handle, uint64_t timeout_ns, halite_completion *out,
                                    halite_error *error) {
    hang_if("hang_wait");
    (void)timeout_ns;
    return bad_event_query(handle, out, error);
}

static halite_status bad_event_elapsed(halite_event earlier, halite_event later, uint64_t *nanoseconds,
                                       halite_error *error) {
    (void)earlier, (void)later, (void)error;
    *nanoseconds = is("backwards") ? UINT64_C(0) - 5 : 5;
    return HALITE_STATUS_OK;
}

static halite_status bad_counters(halite_device device, uint32_t capacity, halite_counter *const *out, uint32_t *count,
                                  halite_error *error) {
    uint32_t i;
    (void)device, (void)error;
    for (i = 0; i < capacity; ++i) {
        memset(out[i]->key, 'k', sizeof out[i]->key);
        if (is("counter_too_far"))
            write_too_far(out[i], out[i]->struct_size);
        if (is("counter_size"))
            out[i]->struct_size = number;
    }
    /* More than asked for at first, and far more the second time. */
    *count = capacity == 0 ? (is("counters") ? (uint32_t)number : 2) : UINT32_MAX;
    return HALITE_STATUS_OK;
}

static const void *bad_extension(const char *name) {
    (void)name;
    return (const void *)(uintptr_t)0x1;
}

static halite_status bad_prepare(halite_device handle, const halite_builtin_desc *desc, halite_builtin *out,
                                 uint64_t *workspace_bytes, halite_error *error) {
    if (is("silent_prepare"))
        return HALITE_STATUS_OK;
    return builtin_prepare(handle, desc, out, workspace_bytes, error);
}

static halite_status program_load(halite_device device, const void *bytes, uint64_t length, halite_program *out,
                                  halite_error *error) {
    (void)device, (void)bytes, (void)length;
    if (is("silent_load"))
        return HALITE_STATUS_OK;
    if (is("log_endless")) {
        memset(error->text, 'l', (size_t)error->text_capacity);
        return HALITE_STATUS_BUILD;
    }
    *out = 1;
    return HALITE_STATUS_OK;
}

static void program_unload(halite_device device, halite_program program) { (void)device, (void)program; }

static halite_status kernel_find(halite_program program, const char *name, halite_kernel *out, halite_error *error) {
    (void)program, (void)name, (void)error;
    *out = is("silent_find") ? 0 : 1;
    return HALITE_STATUS_OK;
}

static halite_status kernel_launch(halite_stream stream, halite_kernel kernel, uint32_t block_count,
                                   uint32_t argument_count, const halite_argument *const *arguments,
                                   halite_error *error) {
    (void)stream, (void)kernel, (void)block_count, (void)argument_count, (void)arguments, (void)error;
    return HALITE_STATUS_OK;
}

static halite_status kernel_info(halite_kernel kernel, halite_kernel_info *out, halite_error *error) {
    (void)kernel, (void)error;
    out->argument_count = is("kernel_arguments") ? (uint32_t)number : 1;
    return HALITE_STATUS_OK;
}

static halite_status kernel_argument(halite_kernel kernel, uint32_t index, halite_argument_info *out,
                                     halite_error *error) {
    (void)kernel, (void)index, (void)error;
    out->kind = out->dtype = out->access = 77;
    return HALITE_STATUS_OK;
}

static void *log_for_ever(void *ignored) {
    char text[4096];
    (void)ignored;
    memset(text, 'x', sizeof text); /* without an end within what the host reads */
    text[sizeof text - 1] = 0;
    for (;;) {
        the_host->log(99, text);
        the_host->log(1, NULL);
        the_host->log(0, "\xFF\x1B[2J\n");
    }
    return NULL;
}

static void log_at_exit(void) { the_host->log(1, "the process ends"); }

static halite_status bad_import(halite_device device, void *pointer, uint64_t length, halite_memory *out,
                                halite_error *error) {
    static halite_memory first;
    (void)device, (void)pointer, (void)length, (void)error;
    if (is("import_same")) {
        if (first == 0)
            first = (halite_memory)(uintptr_t)calloc(1, 256);
        *out = first;
    }
    return HALITE_STATUS_OK;
}

static halite_status bad_peer_enable(halite_device device, halite_device peer, halite_error *error) {
    (void)device, (void)peer, (void)error;
    return HALITE_STATUS_OK;
}

static halite_status bad_copy_peer(halite_stream stream, halite_memory dst, uint64_t dst_offset, halite_device peer,
                                   halite_memory src, uint64_t src_offset, uint64_t length, halite_error *error) {
    (void)stream, (void)dst, (void)dst_offset, (void)peer, (void)src, (void)src_offset, (void)length;
    memset(error->text, 'p', (size_t)error->text_capacity);
    return (halite_status)(int64_t)number;
}

halite_status halite_plugin_entry(const halite_host *host, const halite_plugin **out, halite_error *error);

HALITE_PLUGIN_EXPORT halite_status halite_plugin_entry(const halite_host *host, const halite_plugin **out,
                                                       halite_error *error) {
    read_rule();
    hang_if("hang_entry");
    the_host = host;
    if (is("entry_error_too_far"))
        write_too_far(error, error->struct_size);
    if (is("entry_status")) {
        memset(error->text, 'e', (size_t)error->text_capacity);
        return (halite_status)(int64_t)number;
    }
    minimal_entry(host, out, error);
    table.device_count = bad_device_count;
    table.device_info = bad_device_info;
    table.device_open = bad_device_open;
    table.memory_alloc = bad_memory_alloc;
    table.memory_info = bad_memory_info;
    table.stream_create = bad_stream_create;
    table.stream_fill = bad_stream_fill;
    table.stream_synchronize = bad_stream_synchronize;
    table.event_create = bad_event_create;
    table.event_query = bad_event_query;
    table.event_wait = bad_event_wait;
    table.event_elapsed = bad_event_elapsed;
    table.device_counters = bad_counters;
    table.get_extension = bad_extension;
    table.builtin_prepare = bad_prepare;
    table.features |= HALITE_FEATURE_PROGRAMS | ~UINT64_C(0) << 40;
    table.program_load = program_load;
    table.program_unload = program_unload;
    table.kernel_find = kernel_find;
    table.kernel_launch = kernel_launch;
    table.kernel_info = kernel_info;
    table.kernel_argument = kernel_argument;
    if (!is("import_missing"))
        table.memory_import = bad_import;
    if (is("half_peer") || is("peer_status"))
        table.peer_enable = bad_peer_enable;
    if (is("peer_status"))
        table.stream_copy_peer = bad_copy_peer;
    if (is("size"))
        table.struct_size = number;
    if (is("major"))
        table.abi_major = (uint32_t)number;
    if (is("missing"))
        memset((char *)&table + offsetof(halite_plugin, device_count) + number * sizeof(void *), 0, sizeof(void *));
    if (is("table_name"))
        memset(table.name, '\x1B', sizeof table.name), memset(table.version, '\xFF', sizeof table.version);
    if (is("null_table"))
        *out = NULL;
    if (is("misaligned_table"))
        *out = (const halite_plugin *)(uintptr_t)((uintptr_t)*out + 1);
    if (is("logs")) {
        pthread_t thread;
        atexit(log_at_exit);
        log_at_exit();
        if (pthread_create(&thread, NULL, log_for_ever, NULL) == 0)
            pthread_detach(thread);
    }
    return HALITE_STATUS_OK;
}
