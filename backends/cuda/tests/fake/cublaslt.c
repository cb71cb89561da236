/* Products of matrices, stored by columns, as cuBLASLt documents them. */
#include "fake.h"
#include <math.h>

typedef struct { int compute, scale, transposed[2], epilogue; uint64_t bias; } Desc;
typedef struct { int type, batch; uint64_t rows, columns; int64_t leading, stride; } Matrix;
typedef struct { uint64_t workspace; uint32_t alignment[4], reduction; } Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Result;
typedef struct {
    Desc desc;
    Matrix a, b, d;
    const char *at_a, *at_b, *at_bias;
    char *at_d, *workspace;
    size_t workspace_bytes;
    double alpha, beta;
} Product;

enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14, MAGIC = 0x5ea1, NOT_SUPPORTED = 15 };

static size_t bytes(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

static double get(const char *at, int type, uint64_t index) {
    float single;
    double value;
    uint16_t half;
    switch (type) {
        case F32: return memcpy(&single, at + index * 4, 4), single;
        case F64: return memcpy(&value, at + index * 8, 8), value;
        default: memcpy(&half, at + index * 2, 2); return type == F16 ? f16_value(half) : bf16_value(half);
    }
}

static void put(char *at, int type, uint64_t index, double value) {
    float single = (float)value;
    uint16_t half = type == F16 ? f16_bits(single) : bf16_bits(single);
    switch (type) {
        case F32: memcpy(at + index * 4, &single, 4); break;
        case F64: memcpy(at + index * 8, &value, 8); break;
        default: memcpy(at + index * 2, &half, 2);
    }
}

int cublasLtCreate(void **handle) {
    ENTER(cublasLtCreate);
    *handle = malloc(1);
    pthread_mutex_lock(&fake_lock);
    fake_count("blas", 1);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}
int cublasLtDestroy(void *handle) {
    free(handle);
    pthread_mutex_lock(&fake_lock);
    fake_count("blas", -1);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}
size_t cublasLtGetVersion(void) { return 120402; }
const char *cublasLtGetStatusName(int status) { return status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_OTHER"; }

static int count_descriptors(int change) {
    pthread_mutex_lock(&fake_lock);
    fake_count("descriptor", change);
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

int cublasLtMatmulDescCreate(Desc **out, int compute, int scale) {
    *out = calloc(1, sizeof **out);
    **out = (Desc){.compute = compute, .scale = scale, .epilogue = 1};
    return count_descriptors(1);
}
int cublasLtMatmulDescDestroy(Desc *desc) { return free(desc), count_descriptors(-1); }

static int set(void *target, size_t expected, const void *value, size_t size) {
    if (size != expected) return 7;
    memcpy(target, value, size);
    return 0;
}

int cublasLtMatmulDescSetAttribute(Desc *desc, int attribute, const void *value, size_t size) {
    switch (attribute) {
        case 3: return set(&desc->transposed[0], 4, value, size);
        case 4: return set(&desc->transposed[1], 4, value, size);
        case 7: return set(&desc->epilogue, 4, value, size);
        case 8: return set(&desc->bias, 8, value, size);
        default: return 7;
    }
}

int cublasLtMatrixLayoutCreate(Matrix **out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (leading < (int64_t)rows) return 7;
    *out = malloc(sizeof **out);
    **out = (Matrix){type, 1, rows, columns, leading, 0};
    return count_descriptors(1);
}
int cublasLtMatrixLayoutDestroy(Matrix *matrix) { return free(matrix), count_descriptors(-1); }
int cublasLtMatrixLayoutSetAttribute(Matrix *matrix, int attribute, const void *value, size_t size) {
    switch (attribute) {
        case 5: return set(&matrix->batch, 4, value, size);
        case 6: return set(&matrix->stride, 8, value, size);
        default: return 7;
    }
}

int cublasLtMatmulPreferenceCreate(Preference **out) {
    *out = malloc(sizeof **out);
    **out = (Preference){0, {256, 256, 256, 256}, 7};
    return count_descriptors(1);
}
int cublasLtMatmulPreferenceDestroy(Preference *preference) { return free(preference), count_descriptors(-1); }
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t size) {
    if (attribute == 1) return set(&preference->workspace, 8, value, size);
    if (attribute == 3) return set(&preference->reduction, 4, value, size);
    if (attribute >= 5 && attribute <= 8) return set(&preference->alignment[attribute - 5], 4, value, size);
    return 7;
}

/* Long sums want a workspace. */
static uint64_t inner(const Desc *desc, const Matrix *a) { return desc->transposed[0] ? a->rows : a->columns; }
static size_t wanted(const Desc *desc, const Matrix *a) { return inner(desc, a) > 16 ? 4096 : 0; }

static bool fit(const Desc *desc, const Matrix *a, const Matrix *b, const Matrix *d) {
    uint64_t m = desc->transposed[0] ? a->columns : a->rows;
    uint64_t n = desc->transposed[1] ? b->rows : b->columns, k = desc->transposed[1] ? b->columns : b->rows;
    bool scales = desc->compute == 70 ? desc->scale == F64 : (desc->compute == 68 || desc->compute == 77) && desc->scale == F32;
    return m == d->rows && n == d->columns && k == inner(desc, a) && k && a->batch == d->batch && b->batch == d->batch && scales;
}

int cublasLtMatmulAlgoGetHeuristic(
    void *handle, const Desc *desc, const Matrix *a, const Matrix *b, const Matrix *c, const Matrix *d,
    const Preference *preference, int wanted_count, Result *results, int *count) {
    ENTER(cublasLtMatmulAlgoGetHeuristic);
    if (!handle || wanted_count != 1 || c != d || !fit(desc, a, b, d)) return 7;
    *count = 0;
    /* Half precision wants 16 bytes at once. */
    if (bytes(a->type) == 2 && preference->alignment[0] < 16) return NOT_SUPPORTED;
    if (wanted(desc, a) > preference->workspace) return NOT_SUPPORTED;
    /* What the tests expect: long sums of halves are summed up in f32, in the workspace. */
    if (bytes(d->type) == 2 && preference->reduction != 2) return NOT_SUPPORTED;
    *results = (Result){{{MAGIC}}, wanted(desc, a), 0, 1, {0}};
    *count = 1;
    return 0;
}

static void run_product(Context *context, void *data) {
    Product *p = data;
    if (context->fault) return;
    uint64_t k = inner(&p->desc, &p->a);
    if (p->workspace_bytes && !reach(context, p->workspace, p->workspace_bytes)) return;
    memset(p->workspace, 0xEE, p->workspace_bytes);
    for (int batch = 0; batch < p->d.batch; batch++) {
        const char *a = p->at_a + batch * p->a.stride * bytes(p->a.type), *b = p->at_b + batch * p->b.stride * bytes(p->b.type);
        char *d = p->at_d + batch * p->d.stride * bytes(p->d.type);
        for (uint64_t column = 0; column < p->d.columns; column++)
            for (uint64_t row = 0; row < p->d.rows; row++) {
                double sum = 0;
                for (uint64_t i = 0; i < k; i++) {
                    uint64_t at_a = p->desc.transposed[0] ? row * p->a.leading + i : i * p->a.leading + row;
                    uint64_t at_b = p->desc.transposed[1] ? i * p->b.leading + column : column * p->b.leading + i;
                    if (!reach(context, a + at_a * bytes(p->a.type), bytes(p->a.type))) return;
                    if (!reach(context, b + at_b * bytes(p->b.type), bytes(p->b.type))) return;
                    sum += get(a, p->a.type, at_a) * get(b, p->b.type, at_b);
                }
                sum *= p->alpha;
                if (p->desc.epilogue & 4) sum += get(p->at_bias, p->d.type, row);
                if (p->desc.epilogue & 2) sum = sum > 0 ? sum : 0;
                if (p->desc.epilogue & 32) sum = sum / 2 * (1 + tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
                uint64_t at_d = column * p->d.leading + row;
                if (!reach(context, d + at_d * bytes(p->d.type), bytes(p->d.type))) return;
                put(d, p->d.type, at_d, sum);
            }
    }
}

int cublasLtMatmul(
    void *handle, const Desc *desc, const void *alpha, const void *at_a, const Matrix *a, const void *at_b, const Matrix *b,
    const void *beta, const void *at_c, const Matrix *c, void *at_d, const Matrix *d, const Algorithm *algorithm,
    void *workspace, size_t workspace_bytes, Stream *stream) {
    ENTER(cublasLtMatmul);
    if (!handle || c != d || at_c != at_d || algorithm->data[0] != MAGIC || !fit(desc, a, b, d)) return 7;
    if (workspace_bytes < wanted(desc, a) || (uintptr_t)workspace % 16) return 7;
    bool wide = desc->scale == F64;
    Product product = {
        *desc, *a, *b, *d, at_a, at_b, (const char *)(uintptr_t)desc->bias, at_d, workspace, workspace_bytes,
        wide ? *(const double *)alpha : *(const float *)alpha, wide ? *(const double *)beta : *(const float *)beta};
    if (product.beta != 0) return 7;
    return stream_enqueue(stream, work_new(run_product, &product, sizeof product)) ? 13 : 0;
}
