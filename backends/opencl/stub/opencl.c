/*
 * What the linker finds for -lOpenCL: every entry point, forwarded to a library that is opened at run time. So no
 * program needs an OpenCL library to be built or started.
 *
 * `src/library.rs` opens the library and calls halite_opencl_bind before anything else is called. A call without a
 * library, or to a function that the library lacks, answers with an error code.
 */
#include "functions.h"
#include <string.h>

#if defined(_WIN32)
#define HIDDEN
#else
/* Drivers look up the same names, and must not find these. */
#define HIDDEN __attribute__((visibility("hidden")))
#endif

enum {
    NOT_IN_THE_LIBRARY = -59, /* CL_INVALID_OPERATION */
    NO_LIBRARY = -1001        /* CL_PLATFORM_NOT_FOUND_KHR */
};

static int bound;

static I missing(void) {
    return bound ? NOT_IN_THE_LIBRARY : NO_LIBRARY;
}

static P make_nothing(I *error) {
    if (error) *error = missing();
    return NULL;
}

#define POINT_CODE(name, params, args) static I(CALLED *real_##name) params;
#define POINT_ADDRESS(name, params, args) static P(CALLED *real_##name) params;
#define POINT_RUN(name, params, args) static void(CALLED *real_##name) params;
EACH_FUNCTION(POINT_CODE, POINT_ADDRESS, POINT_ADDRESS, POINT_RUN)

#define CODE(name, params, args)                                                                                      \
    HIDDEN I CALLED name params { return real_##name ? real_##name args : missing(); }
#define MAKE(name, params, args)                                                                                      \
    HIDDEN P CALLED name params { return real_##name ? real_##name args : make_nothing(error); }
#define GIVE(name, params, args)                                                                                      \
    HIDDEN P CALLED name params { return real_##name ? real_##name args : NULL; }
#define RUN(name, params, args)                                                                                       \
    HIDDEN void CALLED name params { if (real_##name) real_##name args; }
EACH_FUNCTION(CODE, MAKE, GIVE, RUN)

/* Takes each function from `symbol`, which answers a name with an address or with null. Called once, before others. */
HIDDEN void halite_opencl_bind(P (*symbol)(P context, const char *name), P context) {
    P address;
#define BIND(name, params, args)                                                                                      \
    address = symbol(context, #name);                                                                                 \
    memcpy(&real_##name, &address, sizeof address);
    EACH_FUNCTION(BIND, BIND, BIND, BIND)
    bound = 1;
}
