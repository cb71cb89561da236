/* A CUDA driver, NVRTC and cuBLASLt without a GPU, for tests of the host's side: one library stands for all three.
 *
 * Streams are threads; device memory is the host's, under addresses of which every use is checked. Work is done by C
 * functions that carry the kernels' names. Where NVIDIA's documentation lets a driver choose, the choice is the harder
 * one for the caller: copies are asynchronous, memory is gone at once when it is freed, handles of another context and
 * pageable memory are refused. What a test cannot see otherwise is counted.
 *
 * Defined when compiling: DEVICES, VERSION, INIT_CODE, MEMORY_BYTES, OLD_DRIVER (no functions that are newer than CUDA
 * 12.3), WITHOUT_SYMBOL, FREE_LAUNCHES (which do nothing, to measure what surrounds them). */
#pragma once
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef DEVICES
#define DEVICES 2
#endif
#ifndef VERSION
#define VERSION 12040
#endif
#ifndef INIT_CODE
#define INIT_CODE 0
#endif
#ifndef MEMORY_BYTES
#define MEMORY_BYTES (64u << 20)
#endif

enum {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    LAUNCH_FAILED = 719,
};

typedef struct Context {
    int device, retains;
    /* The fault that ended it, or 0. */
    int fault;
} Context;

/* Something to do, with its own copy of what it needs. */
typedef struct Work {
    void (*run)(Context *context, void *data);
    size_t size;
    struct Work *next;
    char data[] __attribute__((aligned(16)));
} Work;

typedef struct Stream Stream;
typedef struct Graph Graph;

extern pthread_mutex_t fake_lock;
extern pthread_cond_t fake_changed;
extern __thread Context *fake_current;

/* Counts a call, and answers with the code that a test asked for, if it did. */
int fake_call(const char *name);
/* As fake_call, for functions that act in a context: also the fault of that, or that there is none. */
int fake_enter(const char *name);
void fake_count(const char *kind, int change);

Work *work_new(void (*run)(Context *, void *), const void *data, size_t size);
/* Gives a stream something to do, or notes it in the graph that the stream is captured in. */
int stream_enqueue(Stream *stream, Work *work);
Context *stream_context(Stream *stream);
/* Whether a range lies in memory that is allocated now; a fault of the context if not. */
bool reach(Context *context, const void *address, size_t size);
void context_fault(Context *context, int code);

/* The graph that captured work goes to; NULL ends it. */
void stream_capture(Stream *stream, Graph *graph);
Graph *stream_captured(Stream *stream);
Graph *graph_new(void);
void graph_append(Graph *graph, Work *work);

typedef struct Kernel {
    const char *name;
    int count;
    size_t sizes[8];
    void (*run)(Context *context, void **params, const unsigned *grid, const unsigned *block, unsigned shared);
} Kernel;
extern const Kernel fake_kernels[];

typedef struct Function {
    const Kernel *kernel;
    int dynamic_shared;
} Function;
/* A launch as work; NULL if its sizes are beyond the device. */
Work *launch_work(
    const Function *function, const unsigned *grid, const unsigned *block, unsigned shared, void **params);

float f16_value(uint16_t bits);
uint16_t f16_bits(float value);
float bf16_value(uint16_t bits);
uint16_t bf16_bits(float value);

#define CALL(name)                                  \
    do {                                            \
        int code_ = fake_call(#name);               \
        if (code_) return code_;                    \
    } while (0)
#define ENTER(name)                                 \
    do {                                            \
        int code_ = fake_enter(#name);              \
        if (code_) return code_;                    \
    } while (0)
