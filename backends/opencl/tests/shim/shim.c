/*
 * A driver that misbehaves: every function is forwarded to the real library, but for what the environment asks.
 *
 *   SHIM_FAIL   "function:nth:code,..."  the nth call of the function (0: every call) returns the code and does nothing
 *   SHIM_INFO   "query:number,..."       clGetDeviceInfo answers the query (in hexadecimal) with the number
 *   SHIM_TEXT   "query:text|..."         the same for texts
 *   SHIM_FAULT  "code"                   kernels named fault end with the code instead of running
 *   SHIM_STUCK  anything                 no command is over, by what the driver says
 */
#define _GNU_SOURCE
#include "../../stub/functions.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLANS 16
#define MAX_EVENTS 1024

static struct {
    char function[64];
    long nth;
    I code;
    long calls;
} plans[MAX_PLANS];
static int plan_count;

#define POINT_CODE(name, params, args) static I (*real_##name) params;
#define POINT_ADDRESS(name, params, args) static P (*real_##name) params;
#define POINT_RUN(name, params, args) static void (*real_##name) params;
EACH_FUNCTION(POINT_CODE, POINT_ADDRESS, POINT_ADDRESS, POINT_RUN)

__attribute__((constructor)) static void start(void) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    void *address;
    if (!library) return;
#define BIND(name, params, args)                                                                                      \
    address = dlsym(library, #name);                                                                                  \
    memcpy(&real_##name, &address, sizeof address);
    EACH_FUNCTION(BIND, BIND, BIND, BIND)
    const char *text = getenv("SHIM_FAIL");
    while (text && *text && plan_count < MAX_PLANS) {
        int used = 0;
        if (sscanf(text, "%63[^:]:%ld:%d%n", plans[plan_count].function, &plans[plan_count].nth,
                   &plans[plan_count].code, &used) != 3)
            abort();
        plan_count++;
        text += used;
        if (*text == ',') text++;
    }
}

/* The code that this call is to fail with; 0 to let it through. */
static I planned(const char *function) {
    for (int i = 0; i < plan_count; i++) {
        if (strcmp(plans[i].function, function)) continue;
        long call = __atomic_add_fetch(&plans[i].calls, 1, __ATOMIC_RELAXED);
        if (plans[i].nth == 0 || plans[i].nth == call) return plans[i].code;
    }
    return 0;
}

static P failed(I *error, I code) {
    if (error) *error = code;
    return NULL;
}

/* What the environment says for `query`, after the colon; the end is marked by `separator`. */
static const char *override(const char *variable, U query, char separator) {
    const char *text = getenv(variable);
    while (text && *text) {
        char *end;
        if (strtoul(text, &end, 16) == query && *end == ':') return end + 1;
        text = strchr(text, separator);
        if (text) text++;
    }
    return NULL;
}

static I answer(const void *value, size_t len, Z room, P out, P out_len) {
    if (out && room < len) return -30;
    if (out) memcpy(out, value, len);
    if (out_len) *(Z *)out_len = len;
    return 0;
}

static I device_info(P device, U query, Z room, P out, P out_len) {
    const char *number = override("SHIM_INFO", query, ',');
    if (number) {
        uint64_t value = strtoull(number, NULL, 0);
        return answer(&value, out ? (room < 8 ? room : 8) : 8, room, out, out_len);
    }
    const char *text = override("SHIM_TEXT", query, '|');
    if (text) {
        char copy[256] = {0};
        size_t len = strcspn(text, "|");
        memcpy(copy, text, len < 255 ? len : 255);
        return answer(copy, strlen(copy) + 1, room, out, out_len);
    }
    return real_clGetDeviceInfo(device, query, room, out, out_len);
}

/* Events that are to look failed. The real command behind one does nothing but wait for its list. */
static struct {
    P event;
    I code;
} failed_events[MAX_EVENTS];
static pthread_mutex_t failed_lock = PTHREAD_MUTEX_INITIALIZER;

static I failure_of(P event) {
    I code = 0;
    pthread_mutex_lock(&failed_lock);
    for (int i = 0; i < MAX_EVENTS; i++)
        if (failed_events[i].event == event) code = failed_events[i].code;
    pthread_mutex_unlock(&failed_lock);
    return code;
}

static void set_failure(P event, P next, I code) {
    pthread_mutex_lock(&failed_lock);
    for (int i = 0; i < MAX_EVENTS; i++) {
        if (failed_events[i].event != event) continue;
        failed_events[i].event = next;
        failed_events[i].code = code;
        break;
    }
    pthread_mutex_unlock(&failed_lock);
}

/* Enqueues a command that fails. */
static I enqueue_failure(P queue, U count, P list, P event, I code) {
    I error = real_clEnqueueMarkerWithWaitList(queue, count, list, event);
    if (!error) set_failure(NULL, *(P *)event, code);
    return error;
}

/* As OpenCL wants it, a command that waits for one that failed fails as well. */
static int waits_for_failure(U count, P list) {
    for (U i = 0; i < count; i++)
        if (failure_of(((P *)list)[i])) return 1;
    return 0;
}

static int is_fault(P kernel) {
    char name[64] = {0};
    real_clGetKernelInfo(kernel, 0x1190 /* CL_KERNEL_FUNCTION_NAME */, sizeof name - 1, name, NULL);
    return getenv("SHIM_FAULT") && !strcmp(name, "fault");
}

/* These are written below; the others are forwarded. */
#define clGetDeviceInfo forwarded_clGetDeviceInfo
#define clEnqueueNDRangeKernel forwarded_clEnqueueNDRangeKernel
#define clEnqueueReadBuffer forwarded_clEnqueueReadBuffer
#define clEnqueueWriteBuffer forwarded_clEnqueueWriteBuffer
#define clEnqueueCopyBuffer forwarded_clEnqueueCopyBuffer
#define clEnqueueFillBuffer forwarded_clEnqueueFillBuffer
#define clEnqueueBarrierWithWaitList forwarded_clEnqueueBarrierWithWaitList
#define clGetEventInfo forwarded_clGetEventInfo
#define clWaitForEvents forwarded_clWaitForEvents
#define clReleaseEvent forwarded_clReleaseEvent
#define CODE(name, params, args)                                                                                      \
    I name params {                                                                                                   \
        I code = planned(#name);                                                                                      \
        return code ? code : real_##name ? real_##name args : -59;                                                    \
    }
#define MAKE(name, params, args)                                                                                      \
    P name params {                                                                                                   \
        I code = planned(#name);                                                                                      \
        return code ? failed(error, code) : real_##name ? real_##name args : failed(error, -59);                      \
    }
#define GIVE(name, params, args)                                                                                      \
    P name params { return planned(#name) || !real_##name ? NULL : real_##name args; }
#define RUN(name, params, args)                                                                                       \
    void name params { if (real_##name) real_##name args; }
EACH_FUNCTION(CODE, MAKE, GIVE, RUN)
#undef clGetDeviceInfo
#undef clEnqueueNDRangeKernel
#undef clEnqueueReadBuffer
#undef clEnqueueWriteBuffer
#undef clEnqueueCopyBuffer
#undef clEnqueueFillBuffer
#undef clEnqueueBarrierWithWaitList
#undef clGetEventInfo
#undef clWaitForEvents
#undef clReleaseEvent

I clGetDeviceInfo(P device, U query, Z room, P out, P out_len) {
    I code = planned("clGetDeviceInfo");
    return code ? code : device_info(device, query, room, out, out_len);
}

#define ENQUEUE(name, params, args, faulty)                                                                           \
    I name params {                                                                                                   \
        I code = planned(#name);                                                                                      \
        if (code) return code;                                                                                        \
        if (waits_for_failure(count, list)) return enqueue_failure(queue, count, list, event, -14);                   \
        if (faulty) return enqueue_failure(queue, count, list, event, atoi(getenv("SHIM_FAULT")));                    \
        return real_##name args;                                                                                      \
    }
ENQUEUE(clEnqueueNDRangeKernel, (P queue, P b, U c, P d, P e, P f, U count, P list, P event),
        (queue, b, c, d, e, f, count, list, event), is_fault(b))
ENQUEUE(clEnqueueReadBuffer, (P queue, P b, U c, Z d, Z e, P f, U count, P list, P event),
        (queue, b, c, d, e, f, count, list, event), 0)
ENQUEUE(clEnqueueWriteBuffer, (P queue, P b, U c, Z d, Z e, P f, U count, P list, P event),
        (queue, b, c, d, e, f, count, list, event), 0)
ENQUEUE(clEnqueueCopyBuffer, (P queue, P b, P c, Z d, Z e, Z f, U count, P list, P event),
        (queue, b, c, d, e, f, count, list, event), 0)
ENQUEUE(clEnqueueFillBuffer, (P queue, P b, P c, Z d, Z e, Z f, U count, P list, P event),
        (queue, b, c, d, e, f, count, list, event), 0)
ENQUEUE(clEnqueueBarrierWithWaitList, (P queue, U count, P list, P event), (queue, count, list, event), 0)

I clGetEventInfo(P event, U query, Z room, P out, P out_len) {
    I code = planned("clGetEventInfo");
    if (!code) code = real_clGetEventInfo(event, query, room, out, out_len);
    I failure = failure_of(event);
    if (!code && failure && query == 0x11D3 /* CL_EVENT_COMMAND_EXECUTION_STATUS */ && out && *(I *)out == 0)
        *(I *)out = failure;
    if (!code && getenv("SHIM_STUCK") && query == 0x11D3 && out) *(I *)out = 1 /* CL_RUNNING */;
    return code;
}

I clWaitForEvents(U count, P list) {
    I code = planned("clWaitForEvents");
    if (!code) code = real_clWaitForEvents(count, list);
    return !code && waits_for_failure(count, list) ? -14 : code;
}

I clReleaseEvent(P event) {
    set_failure(event, NULL, 0);
    return real_clReleaseEvent(event);
}
