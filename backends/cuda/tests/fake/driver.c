/* Devices, contexts, memory, streams, events and modules. */
#include "fake.h"

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fake_changed = PTHREAD_COND_INITIALIZER;
__thread Context *fake_current;
static Context contexts[DEVICES ? DEVICES : 1];

/* ---- what tests ask for ---- */

static struct { char name[64]; long count; } counters[128];

static long *counter(const char *name) {
    for (int i = 0; i < 128; i++) {
        if (!counters[i].name[0]) strncpy(counters[i].name, name, 63);
        if (!strcmp(counters[i].name, name)) return &counters[i].count;
    }
    abort();
}

static struct { char name[64]; int code, skip; } failure;

/* Calls of a function, or live objects of a kind: "memory", "stream", "event", "module", "graph", "context". */
int64_t fake_counter(const char *name) {
    pthread_mutex_lock(&fake_lock);
    int64_t count = *counter(name);
    pthread_mutex_unlock(&fake_lock);
    return count;
}

/* After `skip` more calls, the next one of `name` answers with `code`. */
void fake_fail(const char *name, int code, int skip) {
    pthread_mutex_lock(&fake_lock);
    strncpy(failure.name, name, 63);
    failure.code = code;
    failure.skip = skip;
    pthread_mutex_unlock(&fake_lock);
}

void fake_count(const char *kind, int change) { *counter(kind) += change; }

static int call_locked(const char *name) {
    ++*counter(name);
    if (failure.code && !strcmp(failure.name, name) && failure.skip-- == 0) {
        int code = failure.code;
        failure.code = 0;
        return code;
    }
    return 0;
}

int fake_call(const char *name) {
    pthread_mutex_lock(&fake_lock);
    int code = call_locked(name);
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int fake_enter(const char *name) {
    pthread_mutex_lock(&fake_lock);
    int code = call_locked(name);
    if (!code) code = !fake_current ? INVALID_CONTEXT : fake_current->fault;
    pthread_mutex_unlock(&fake_lock);
    return code;
}

/* ---- the driver, devices and contexts ---- */

int cuInit(unsigned flags) {
    CALL(cuInit);
    return flags ? INVALID_VALUE : INIT_CODE;
}

int cuDriverGetVersion(int *version) {
    *version = VERSION;
    return 0;
}

static const struct { int code; const char *name, *text; } codes[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {998, "CUDA_ERROR_OF_THE_FUTURE", "something new"},
};

static int describe(int code, const char **out, bool name) {
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].code == code) return *out = name ? codes[i].name : codes[i].text, 0;
    *out = NULL;
    return INVALID_VALUE;
}

int cuGetErrorName(int code, const char **out) { return describe(code, out, true); }
int cuGetErrorString(int code, const char **out) { return describe(code, out, false); }

int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= DEVICES) return 101;
    *device = ordinal;
    return 0;
}

int cuDeviceGetName(char *name, int len, int device) {
    snprintf(name, len, "Fake GPU %d", device);
    return 0;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = MEMORY_BYTES;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
        case 1: *value = 1024; return 0;         /* threads of a block */
        case 2: case 3: *value = 1024; return 0; /* of its axes */
        case 4: *value = 64; return 0;
        case 5: *value = 0x7fffffff; return 0;   /* blocks of a grid */
        case 6: case 7: *value = 65535; return 0;
        case 8: *value = 48 << 10; return 0;     /* shared memory of a block */
        case 13: *value = 1000000; return 0;     /* clock */
        case 16: *value = 4; return 0;           /* multiprocessors */
        case 18: *value = 0; return 0;           /* integrated */
        case 75: *value = 9; return 0;           /* capability */
        case 76: *value = 0; return 0;
        case 97: *value = 227 << 10; return 0;   /* shared memory that can be asked for */
#ifndef OLD_DRIVER
        case 115: *value = 1; return 0;          /* memory in the order of streams */
#endif
        default: return INVALID_VALUE;
    }
}

int cuDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = device != peer;
    return 0;
}

#ifndef WITHOUT_SYMBOL
int cuDevicePrimaryCtxRetain(Context **out, int device) {
    CALL(cuDevicePrimaryCtxRetain);
    pthread_mutex_lock(&fake_lock);
    contexts[device].device = device;
    if (!contexts[device].retains++) fake_count("context", 1);
    *out = &contexts[device];
    pthread_mutex_unlock(&fake_lock);
    return 0;
}
#endif

int cuDevicePrimaryCtxRelease_v2(int device) {
    CALL(cuDevicePrimaryCtxRelease_v2);
    pthread_mutex_lock(&fake_lock);
    int code = contexts[device].retains > 0 ? 0 : INVALID_CONTEXT;
    if (!code && !--contexts[device].retains) {
        fake_count("context", -1);
        /* A new context begins without the old one's fault. */
        contexts[device].fault = 0;
    }
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int cuCtxGetCurrent(Context **out) {
    *out = fake_current;
    return 0;
}

int cuCtxSetCurrent(Context *context) {
    fake_current = context;
    return 0;
}

int cuCtxEnablePeerAccess(Context *peer, unsigned flags) {
    ENTER(cuCtxEnablePeerAccess);
    return !peer || flags || peer == fake_current ? INVALID_VALUE : 0;
}

void context_fault(Context *context, int code) {
    pthread_mutex_lock(&fake_lock);
    if (!context->fault) context->fault = code;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
}

/* ---- memory ---- */

typedef struct Memory {
    char *base;
    size_t size;
    int device; /* -1 for the host's, REGISTERED for the caller's */
    bool ordered;
    struct Memory *next;
} Memory;
enum { REGISTERED = -2 };
static Memory *memories;
static size_t used[DEVICES ? DEVICES : 1];

static Memory **find(const void *address, size_t size) {
    for (Memory **at = &memories; *at; at = &(*at)->next) {
        char *p = (char *)address, *base = (*at)->base;
        if (p >= base && size <= (*at)->size && p + size <= base + (*at)->size) return at;
    }
    return NULL;
}

static char *allocate(size_t size, int device, bool ordered) {
    Memory *memory = malloc(sizeof *memory);
    *memory = (Memory){aligned_alloc(256, (size + 255) / 256 * 256), size, device, ordered, memories};
    /* What was there before shows. */
    memset(memory->base, 0xCD, size);
    memories = memory;
    fake_count("memory", 1);
    return memory->base;
}

static int release(char *base, bool of_host, bool ordered) {
    pthread_mutex_lock(&fake_lock);
    Memory **at = find(base, 1);
    int code = at && (*at)->base == base && ((*at)->device == -1) == of_host && (*at)->device != REGISTERED && (*at)->ordered == ordered ? 0 : INVALID_VALUE;
    if (!code) {
        Memory *memory = *at;
        *at = memory->next;
        if (memory->device >= 0) used[memory->device] -= memory->size;
        memset(memory->base, 0xDD, memory->size);
        free(memory->base);
        free(memory);
        fake_count("memory", -1);
    }
    pthread_mutex_unlock(&fake_lock);
    return code;
}

bool reach(Context *context, const void *address, size_t size) {
    pthread_mutex_lock(&fake_lock);
    bool found = !size || find(address, size);
    if (!found && !context->fault) context->fault = ILLEGAL_ADDRESS;
    pthread_mutex_unlock(&fake_lock);
    return found;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER(cuMemGetInfo_v2);
    pthread_mutex_lock(&fake_lock);
    *total = MEMORY_BYTES;
    *free_bytes = MEMORY_BYTES - used[fake_current->device];
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

static int allocate_on_device(uint64_t *address, size_t size, bool ordered) {
    pthread_mutex_lock(&fake_lock);
    int device = fake_current->device, code = !size ? INVALID_VALUE : size > MEMORY_BYTES - used[device] ? OUT_OF_MEMORY : 0;
    if (!code) {
        used[device] += size;
        *address = (uint64_t)(uintptr_t)allocate(size, device, ordered);
    }
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    ENTER(cuMemAlloc_v2);
    return allocate_on_device(address, size, false);
}

int cuMemAllocAsync(uint64_t *address, size_t size, Stream *stream) {
    ENTER(cuMemAllocAsync);
    return stream_context(stream) != fake_current ? INVALID_HANDLE : allocate_on_device(address, size, true);
}

static void run_free(Context *context, void *data) {
    (void)context;
    if (release(*(char **)data, false, true)) abort();
}

int cuMemFreeAsync(uint64_t address, Stream *stream) {
    ENTER(cuMemFreeAsync);
    return stream_enqueue(stream, work_new(run_free, &address, sizeof address));
}

int cuDeviceGetMemPool(void **pool, int device) {
    *pool = &contexts[device];
    return 0;
}

typedef struct { int location_type, location, access; } Access;

int cuMemPoolSetAccess(void *pool, const Access *access, size_t count) {
    CALL(cuMemPoolSetAccess);
    bool right = count == 1 && access->location_type == 1 && access->access == 3 && pool != &contexts[access->location];
    return right ? 0 : INVALID_VALUE;
}

int cuMemFree_v2(uint64_t address) {
    ENTER(cuMemFree_v2);
    return release((char *)(uintptr_t)address, false, false);
}

int cuMemHostAlloc(void **out, size_t size, unsigned flags) {
    ENTER(cuMemHostAlloc);
    if (!size || flags != 3) return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    *out = allocate(size, -1, false);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int cuMemHostGetDevicePointer_v2(uint64_t *address, void *host, unsigned flags) {
    ENTER(cuMemHostGetDevicePointer_v2);
    *address = (uint64_t)(uintptr_t)host;
    return flags;
}

int cuMemHostRegister_v2(void *host, size_t size, unsigned flags) {
    ENTER(cuMemHostRegister_v2);
    if (!size || flags != 3) return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    int code = find(host, 1) ? ALREADY_REGISTERED : 0;
    if (!code) {
        Memory *memory = malloc(sizeof *memory);
        *memory = (Memory){host, size, REGISTERED, false, memories};
        memories = memory;
        fake_count("registered", 1);
    }
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int cuMemHostUnregister(void *host) {
    ENTER(cuMemHostUnregister);
    pthread_mutex_lock(&fake_lock);
    Memory **at = find(host, 1), *memory = at ? *at : NULL;
    int code = memory && memory->base == host && memory->device == REGISTERED ? 0 : INVALID_VALUE;
    if (!code) {
        *at = memory->next;
        free(memory);
        fake_count("registered", -1);
    }
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int cuMemFreeHost(void *host) {
    ENTER(cuMemFreeHost);
    return release(host, true, false);
}

/* ---- streams ---- */

struct Stream {
    Context *context;
    Work *first, **last;
    bool ended;
    /* Whether a thread runs something that was taken off the list. */
    bool busy;
    Graph *capture;
};

Work *work_new(void (*run)(Context *, void *), const void *data, size_t size) {
    Work *work = malloc(sizeof *work + size);
    work->run = run;
    work->size = size;
    work->next = NULL;
    if (data) memcpy(work->data, data, size);
    return work;
}

static void *stream_run(void *argument) {
    Stream *stream = argument;
    pthread_mutex_lock(&fake_lock);
    for (;;) {
        while (!stream->first && !stream->ended) pthread_cond_wait(&fake_changed, &fake_lock);
        Work *work = stream->first;
        if (!work) break;
        if (!(stream->first = work->next)) stream->last = &stream->first;
        stream->busy = true;
        pthread_mutex_unlock(&fake_lock);
        work->run(stream->context, work->data);
        free(work);
        pthread_mutex_lock(&fake_lock);
        stream->busy = false;
        pthread_cond_broadcast(&fake_changed);
    }
    fake_count("stream", -1);
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    free(stream);
    return NULL;
}

Context *stream_context(Stream *stream) { return stream->context; }
void stream_capture(Stream *stream, Graph *graph) { stream->capture = graph; }
Graph *stream_captured(Stream *stream) { return stream->capture; }

int stream_enqueue(Stream *stream, Work *work) {
    if (stream->context != fake_current) {
        free(work);
        return INVALID_HANDLE;
    }
    if (stream->capture) {
        graph_append(stream->capture, work);
        return 0;
    }
    pthread_mutex_lock(&fake_lock);
    *stream->last = work;
    stream->last = &work->next;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int cuStreamCreate(Stream **out, unsigned flags) {
    ENTER(cuStreamCreate);
    if (flags != 1) return INVALID_VALUE;
    Stream *stream = calloc(1, sizeof *stream);
    stream->context = fake_current;
    stream->last = &stream->first;
    pthread_t thread;
    if (pthread_create(&thread, NULL, stream_run, stream)) return OUT_OF_MEMORY;
    pthread_detach(thread);
    pthread_mutex_lock(&fake_lock);
    fake_count("stream", 1);
    pthread_mutex_unlock(&fake_lock);
    *out = stream;
    return 0;
}

int cuStreamDestroy_v2(Stream *stream) {
    fake_call("cuStreamDestroy_v2");
    if (!fake_current || stream->context != fake_current) return INVALID_HANDLE;
    pthread_mutex_lock(&fake_lock);
    stream->ended = true;
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int cuStreamSynchronize(Stream *stream) {
    ENTER(cuStreamSynchronize);
    pthread_mutex_lock(&fake_lock);
    while ((stream->first || stream->busy) && !stream->context->fault) pthread_cond_wait(&fake_changed, &fake_lock);
    int code = stream->context->fault;
    pthread_mutex_unlock(&fake_lock);
    return code;
}

typedef struct { void (*function)(void *); void *data; } HostCall;

static void run_host(Context *context, void *data) {
    HostCall *call = data;
    if (!context->fault) call->function(call->data);
}

int cuLaunchHostFunc(Stream *stream, void (*function)(void *), void *data) {
    ENTER(cuLaunchHostFunc);
    HostCall call = {function, data};
    return stream_enqueue(stream, work_new(run_host, &call, sizeof call));
}

/* ---- events ---- */

typedef struct Event {
    Context *context;
    /* How many times it was recorded, and the last of them that was reached. */
    long recorded, reached;
    /* Works that name it, and whether it is destroyed. */
    int uses;
    bool ended;
    int64_t time_ns;
} Event;

typedef struct { Event *event; long number; } Mark;

static void event_unuse(Event *event) {
    event->uses--;
    if (event->ended && !event->uses) {
        free(event);
        fake_count("event", -1);
    }
}

static void run_record(Context *context, void *data) {
    (void)context;
    Mark *mark = data;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&fake_lock);
    if (mark->number > mark->event->reached) mark->event->reached = mark->number;
    mark->event->time_ns = now.tv_sec * 1000000000ll + now.tv_nsec;
    event_unuse(mark->event);
    pthread_cond_broadcast(&fake_changed);
    pthread_mutex_unlock(&fake_lock);
}

static void run_wait(Context *context, void *data) {
    Mark *mark = data;
    pthread_mutex_lock(&fake_lock);
    while (mark->event->reached < mark->number && !context->fault) pthread_cond_wait(&fake_changed, &fake_lock);
    event_unuse(mark->event);
    pthread_mutex_unlock(&fake_lock);
}

int cuEventCreate(Event **out, unsigned flags) {
    ENTER(cuEventCreate);
    if (flags) return INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    (*out)->context = fake_current;
    pthread_mutex_lock(&fake_lock);
    fake_count("event", 1);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int cuEventDestroy_v2(Event *event) {
    fake_call("cuEventDestroy_v2");
    pthread_mutex_lock(&fake_lock);
    event->ended = true;
    event->uses++;
    event_unuse(event);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int cuEventRecord(Event *event, Stream *stream) {
    ENTER(cuEventRecord);
    if (event->context != fake_current || stream->capture) return INVALID_HANDLE;
    pthread_mutex_lock(&fake_lock);
    Mark mark = {event, ++event->recorded};
    event->uses++;
    pthread_mutex_unlock(&fake_lock);
    return stream_enqueue(stream, work_new(run_record, &mark, sizeof mark));
}

/* The event may be another context's. */
int cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
    ENTER(cuStreamWaitEvent);
    if (flags) return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    Mark mark = {event, event->recorded};
    event->uses++;
    pthread_mutex_unlock(&fake_lock);
    return stream_enqueue(stream, work_new(run_wait, &mark, sizeof mark));
}

int cuEventQuery(Event *event) {
    ENTER(cuEventQuery);
    if (event->context != fake_current) return INVALID_HANDLE;
    pthread_mutex_lock(&fake_lock);
    int code = event->reached == event->recorded ? 0 : NOT_READY;
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int cuEventSynchronize(Event *event) {
    ENTER(cuEventSynchronize);
    if (event->context != fake_current) return INVALID_HANDLE;
    pthread_mutex_lock(&fake_lock);
    long number = event->recorded;
    while (event->reached < number && !event->context->fault) pthread_cond_wait(&fake_changed, &fake_lock);
    int code = event->context->fault;
    pthread_mutex_unlock(&fake_lock);
    return code;
}

int cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    ENTER(cuEventElapsedTime);
    if (from->context != to->context) return INVALID_HANDLE;
    if (from->reached < from->recorded || to->reached < to->recorded) return NOT_READY;
    *milliseconds = (float)((to->time_ns - from->time_ns) / 1e6);
    return 0;
}

/* ---- copies and fills ---- */

typedef struct { char *dst; const char *src; size_t size; } Copy;

static void run_copy(Context *context, void *data) {
    Copy *copy = data;
    if (context->fault || !reach(context, copy->dst, copy->size) || !reach(context, copy->src, copy->size)) return;
    memcpy(copy->dst, copy->src, copy->size);
}

Work *copy_work(uint64_t dst, uint64_t src, size_t size) {
    Copy copy = {(char *)(uintptr_t)dst, (const char *)(uintptr_t)src, size};
    return work_new(run_copy, &copy, sizeof copy);
}

/* Which side memory is on: 1 the device's, 2 pinned, 0 none of ours. */
static int side(uint64_t address, size_t size) {
    pthread_mutex_lock(&fake_lock);
    Memory **at = find((void *)(uintptr_t)address, size);
    int side = !at ? 0 : (*at)->device < 0 ? 2 : 1;
    pthread_mutex_unlock(&fake_lock);
    return side;
}

static int copy_between(uint64_t dst, int dst_side, uint64_t src, int src_side, size_t size, Stream *stream) {
    int to = side(dst, size), from = side(src, size);
    if (!size || (dst_side && to != dst_side) || (src_side && from != src_side) || !to || !from) return INVALID_VALUE;
    return stream_enqueue(stream, copy_work(dst, src, size));
}

int cuMemcpyAsync(uint64_t dst, uint64_t src, size_t size, Stream *stream) {
    ENTER(cuMemcpyAsync);
    return copy_between(dst, 0, src, 0, size, stream);
}

int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t size, Stream *stream) {
    ENTER(cuMemcpyHtoDAsync_v2);
    return copy_between(dst, 1, (uint64_t)(uintptr_t)src, 2, size, stream);
}

int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t size, Stream *stream) {
    ENTER(cuMemcpyDtoHAsync_v2);
    return copy_between((uint64_t)(uintptr_t)dst, 2, src, 1, size, stream);
}

int cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t size, Stream *stream) {
    ENTER(cuMemcpyDtoDAsync_v2);
    return copy_between(dst, 1, src, 1, size, stream);
}

int cuMemcpyPeerAsync(uint64_t dst, Context *to, uint64_t src, Context *from, size_t size, Stream *stream) {
    ENTER(cuMemcpyPeerAsync);
    return to != fake_current || from == to ? INVALID_VALUE : copy_between(dst, 1, src, 1, size, stream);
}

typedef struct { char *dst; uint32_t value; unsigned element; size_t count; } Fill;

static void run_fill(Context *context, void *data) {
    Fill *fill = data;
    if (context->fault || !reach(context, fill->dst, fill->element * fill->count)) return;
    for (size_t i = 0; i < fill->count; i++) memcpy(fill->dst + i * fill->element, &fill->value, fill->element);
}

Work *fill_work(uint64_t dst, uint32_t value, unsigned element, size_t count) {
    Fill fill = {(char *)(uintptr_t)dst, value, element, count};
    return work_new(run_fill, &fill, sizeof fill);
}

static int fill(uint64_t dst, uint32_t value, unsigned element, size_t count, Stream *stream) {
    if (!count || dst % element) return INVALID_VALUE;
    return stream_enqueue(stream, fill_work(dst, value, element, count));
}

int cuMemsetD8Async(uint64_t dst, unsigned char value, size_t count, Stream *stream) {
    ENTER(cuMemsetD8Async);
    return fill(dst, value, 1, count, stream);
}
int cuMemsetD16Async(uint64_t dst, unsigned short value, size_t count, Stream *stream) {
    ENTER(cuMemsetD16Async);
    return fill(dst, value, 2, count, stream);
}
int cuMemsetD32Async(uint64_t dst, unsigned value, size_t count, Stream *stream) {
    ENTER(cuMemsetD32Async);
    return fill(dst, value, 4, count, stream);
}

/* ---- code ---- */

typedef struct Module {
    char *text;
    Function functions[64];
    int count;
} Module;

/* A cubin of the fake compiler is a header of 64 bytes before the source. */
int cuModuleLoadDataEx(Module **out, const char *image, unsigned count, int *options, void **values) {
    ENTER(cuModuleLoadDataEx);
    const char *text = memcmp(image, "\177ELF", 4) ? image : image + 64;
    if (strstr(text, "FAKE_BAD_IMAGE")) return INVALID_IMAGE;
    if (strstr(text, "FAKE_BAD_PTX")) {
        char *log = NULL;
        size_t size = 0;
        for (unsigned i = 0; i < count; i++) {
            if (options[i] == 5) log = values[i];
            if (options[i] == 6) size = (size_t)(uintptr_t)values[i];
        }
        if (log) snprintf(log, size, "ptxas error: unknown symbol on line 7");
        return INVALID_PTX;
    }
    Module *module = calloc(1, sizeof *module);
    module->text = strdup(text);
    pthread_mutex_lock(&fake_lock);
    fake_count("module", 1);
    pthread_mutex_unlock(&fake_lock);
    *out = module;
    return 0;
}

int cuModuleUnload(Module *module) {
    ENTER(cuModuleUnload);
    free(module->text);
    memset(module, 0xDD, sizeof *module);
    free(module);
    pthread_mutex_lock(&fake_lock);
    fake_count("module", -1);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

static bool declares(const char *text, const char *name) {
    size_t len = strlen(name);
    for (const char *at = text; (at = strstr(at, name)); at += len)
        if (at > text && at[len] == '(' && (at[-1] == ' ' || at[-1] == '\n')) return true;
    return false;
}

int cuModuleGetFunction(Function **out, Module *module, const char *name) {
    ENTER(cuModuleGetFunction);
    for (const Kernel *kernel = fake_kernels; kernel->name; kernel++) {
        if (strcmp(kernel->name, name) || !declares(module->text, name)) continue;
        *out = &module->functions[module->count++ % 64];
        **out = (Function){kernel, 48 << 10};
        return 0;
    }
    return NOT_FOUND;
}

int cuFuncGetAttribute(int *value, int attribute, Function *function) {
    ENTER(cuFuncGetAttribute);
    switch (attribute) {
        /* Threads of a block, fewer for a kernel that needs many registers. */
        case 0: *value = strcmp(function->kernel->name, "greedy") ? 1024 : 64; return 0;
        case 1: *value = 0; return 0;
        default: return INVALID_VALUE;
    }
}

int cuFuncSetAttribute(Function *function, int attribute, int value) {
    ENTER(cuFuncSetAttribute);
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE;
    function->dynamic_shared = value;
    return 0;
}

#ifndef OLD_DRIVER
int cuFuncLoad(Function *function) {
    ENTER(cuFuncLoad);
    return function->kernel ? 0 : INVALID_HANDLE;
}

int cuFuncGetParamInfo(Function *function, size_t index, size_t *offset, size_t *size) {
    ENTER(cuFuncGetParamInfo);
    if (index >= (size_t)function->kernel->count) return INVALID_VALUE;
    *offset = 0;
    *size = function->kernel->sizes[index];
    return 0;
}
#endif

typedef struct {
    const Kernel *kernel;
    unsigned grid[3], block[3], shared;
    char values[8][512] __attribute__((aligned(16)));
} Launch;

static void run_launch(Context *context, void *data) {
    Launch *launch = data;
    if (context->fault) return;
    void *params[8];
    for (int i = 0; i < 8; i++) params[i] = launch->values[i];
    launch->kernel->run(context, params, launch->grid, launch->block, launch->shared);
}

Work *launch_work(
    const Function *function, const unsigned *grid, const unsigned *block, unsigned shared, void **params) {
    uint64_t threads = 1;
    for (int axis = 0; axis < 3; axis++) {
        if (!grid[axis] || !block[axis]) return NULL;
        threads *= block[axis];
    }
    if (threads > 1024 || shared > (unsigned)function->dynamic_shared) return NULL;
    Launch launch = {.kernel = function->kernel, .shared = shared};
    memcpy(launch.grid, grid, sizeof launch.grid);
    memcpy(launch.block, block, sizeof launch.block);
    for (int i = 0; i < function->kernel->count; i++) memcpy(launch.values[i], params[i], function->kernel->sizes[i]);
    return work_new(run_launch, &launch, sizeof launch);
}

int cuLaunchKernel(
    Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, Stream *stream, void **params, void **extra) {
#ifdef FREE_LAUNCHES
    return 0;
#endif
    ENTER(cuLaunchKernel);
    unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    Work *work = extra ? NULL : launch_work(function, grid, block, shared, params);
    return work ? stream_enqueue(stream, work) : INVALID_VALUE;
}
