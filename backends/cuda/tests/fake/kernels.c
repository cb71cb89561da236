/* What the kernels of the tests, and the backend's built-ins, do. */
#include "fake.h"

#define AT(type, index) (*(type *)params[index])
#define KERNEL(name) \
    static void name(Context *context, void **params, const unsigned *grid, const unsigned *block, unsigned shared)
#define UNUSED (void)context, (void)params, (void)grid, (void)block, (void)shared

static uint64_t threads(const unsigned *grid, const unsigned *block) { return (uint64_t)grid[0] * block[0]; }

KERNEL(twice) {
    UNUSED;
    float *x = AT(float *, 0), *out = AT(float *, 1);
    uint32_t n = AT(uint32_t, 2);
    if (threads(grid, block) < n) n = threads(grid, block);
    if (!reach(context, x, n * 4) || !reach(context, out, n * 4)) return;
    for (uint32_t i = 0; i < n; i++) out[i] = 2 * x[i];
}

KERNEL(increment) {
    UNUSED;
    uint32_t *x = AT(uint32_t *, 0), n = AT(uint32_t, 1);
    if (!reach(context, x, n * 4)) return;
    for (uint32_t i = 0; i < n; i++) x[i]++;
}

KERNEL(await_flag) {
    UNUSED;
    volatile uint32_t *flag = AT(uint32_t *, 0);
    while (!context->fault && !__atomic_load_n(flag, __ATOMIC_ACQUIRE)) usleep(50);
}

KERNEL(stop) {
    UNUSED;
    context_fault(context, LAUNCH_FAILED);
}

KERNEL(scalars) {
    UNUSED;
    double *out = AT(double *, 0);
    if (!reach(context, out, 48)) return;
    out[0] = AT(int32_t, 1);
    out[1] = AT(uint32_t, 2);
    out[2] = (double)AT(int64_t, 3);
    out[3] = (double)AT(uint64_t, 4);
    out[4] = AT(float, 5);
    out[5] = AT(double, 6);
}

/* Writes the bytes of dynamic shared memory that it got. */
KERNEL(shared_bytes) {
    UNUSED;
    uint32_t *out = AT(uint32_t *, 0);
    if (reach(context, out, 4)) *out = shared;
}

KERNEL(greedy) { UNUSED; }

typedef struct { uint64_t elements, rank, shape[8], strides[3][8]; } Layout;

static uint64_t place(const Layout *layout, int operand, uint64_t index) {
    uint64_t at = 0;
    for (int axis = (int)layout->rank - 1; axis >= 0; axis--) {
        at += index % layout->shape[axis] * layout->strides[operand][axis];
        index /= layout->shape[axis];
    }
    return at;
}

#define EACH(layout) for (uint64_t i = 0; i < (layout)->elements; i++)
#define REACHED(pointer, operand, bytes) reach(context, (char *)(pointer) + place(layout, operand, i) * (bytes), bytes)

static void copy(Context *context, void **params, size_t bytes) {
    char *in = AT(char *, 0), *out = AT(char *, 1);
    Layout *layout = params[2];
    EACH(layout) {
        if (!REACHED(in, 0, bytes) || !REACHED(out, 1, bytes)) return;
        memcpy(out + place(layout, 1, i) * bytes, in + place(layout, 0, i) * bytes, bytes);
    }
}

static void fill(Context *context, void **params, size_t bytes) {
    char *out = AT(char *, 0);
    Layout *layout = params[2];
    EACH(layout) {
        if (!REACHED(out, 0, bytes)) return;
        memcpy(out + place(layout, 0, i) * bytes, params[1], bytes);
    }
}

#define MOVES(bytes)                                         \
    KERNEL(copy_##bytes) { UNUSED; copy(context, params, bytes); } \
    KERNEL(fill_##bytes) { UNUSED; fill(context, params, bytes); }
MOVES(1)
MOVES(2)
MOVES(4)
MOVES(8)

#define ADD(name, T, SUM)                                                                      \
    KERNEL(add_##name) {                                                                       \
        UNUSED;                                                                                \
        T *lhs = AT(T *, 0), *rhs = AT(T *, 1), *out = AT(T *, 2);                             \
        Layout *layout = params[3];                                                            \
        EACH(layout) {                                                                         \
            if (!REACHED(lhs, 0, sizeof(T)) || !REACHED(rhs, 1, sizeof(T)) || !REACHED(out, 2, sizeof(T))) return; \
            T a = lhs[place(layout, 0, i)], b = rhs[place(layout, 1, i)];                      \
            out[place(layout, 2, i)] = SUM;                                                    \
        }                                                                                      \
    }
ADD(1, uint8_t, (uint8_t)(a + b))
ADD(2, uint16_t, (uint16_t)(a + b))
ADD(4, uint32_t, a + b)
ADD(8, uint64_t, a + b)
ADD(f16, uint16_t, f16_bits(f16_value(a) + f16_value(b)))
ADD(bf16, uint16_t, bf16_bits(bf16_value(a) + bf16_value(b)))
ADD(f32, float, a + b)
ADD(f64, double, a + b)

#define LAYOUT sizeof(Layout)
const Kernel fake_kernels[] = {
    {"twice", 3, {8, 8, 4}, twice},
    {"increment", 2, {8, 4}, increment},
    {"await_flag", 1, {8}, await_flag},
    {"stop", 0, {0}, stop},
    {"scalars", 7, {8, 4, 4, 8, 8, 4, 8}, scalars},
    {"shared_bytes", 1, {8}, shared_bytes},
    {"greedy", 0, {0}, greedy},
    {"halite_copy_b1", 3, {8, 8, LAYOUT}, copy_1},
    {"halite_copy_b2", 3, {8, 8, LAYOUT}, copy_2},
    {"halite_copy_b4", 3, {8, 8, LAYOUT}, copy_4},
    {"halite_copy_b8", 3, {8, 8, LAYOUT}, copy_8},
    {"halite_fill_b1", 3, {8, 8, LAYOUT}, fill_1},
    {"halite_fill_b2", 3, {8, 8, LAYOUT}, fill_2},
    {"halite_fill_b4", 3, {8, 8, LAYOUT}, fill_4},
    {"halite_fill_b8", 3, {8, 8, LAYOUT}, fill_8},
    {"halite_add_b1", 4, {8, 8, 8, LAYOUT}, add_1},
    {"halite_add_b2", 4, {8, 8, 8, LAYOUT}, add_2},
    {"halite_add_b4", 4, {8, 8, 8, LAYOUT}, add_4},
    {"halite_add_b8", 4, {8, 8, 8, LAYOUT}, add_8},
    {"halite_add_f16", 4, {8, 8, 8, LAYOUT}, add_f16},
    {"halite_add_bf16", 4, {8, 8, 8, LAYOUT}, add_bf16},
    {"halite_add_f32", 4, {8, 8, 8, LAYOUT}, add_f32},
    {"halite_add_f64", 4, {8, 8, 8, LAYOUT}, add_f64},
    {NULL, 0, {0}, NULL},
};

float bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

uint16_t bf16_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float f16_value(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    float sign = bits >> 15 ? -1.f : 1.f, digits = (float)(bits & 1023);
    if (exponent == 31) return digits ? 0.f / 0.f : sign / 0.f;
    float value = exponent ? 1 + digits / 1024 : digits / 1024;
    for (int e = exponent ? exponent - 15 : -14; e; e += e < 0 ? 1 : -1) value *= e < 0 ? 0.5f : 2;
    return sign * value;
}

/* The nearest of all, which is the plainest way to say it. */
uint16_t f16_bits(float value) {
    uint16_t sign = __builtin_signbit(value) ? 0x8000 : 0;
    if (value != value) return sign | 0x7e00;
    float size = sign ? -value : value;
    if (size >= 65520) return sign | 0x7c00;
    uint16_t low = 0, high = 0x7c00;
    while (high - low > 1) {
        uint16_t middle = (low + high) / 2;
        if (f16_value(middle) <= size) low = middle; else high = middle;
    }
    float above = high == 0x7c00 ? 65536 : f16_value(high), down = size - f16_value(low), up = above - size;
    return sign | (up < down || (up == down && low & 1) ? high : low);
}
