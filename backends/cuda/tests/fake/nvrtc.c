/* A compiler that keeps the source as it is. */
#include "fake.h"

typedef struct { char *source, *log, *image; size_t size; } Program;

int nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 4;
    return 0;
}
int nvrtcGetNumSupportedArchs(int *count) {
    *count = 3;
    return 0;
}
int nvrtcGetSupportedArchs(int *numbers) {
    /* Not in order: nobody promises that. */
    numbers[0] = 80, numbers[1] = 75, numbers[2] = 90;
    return 0;
}
const char *nvrtcGetErrorString(int result) {
    return result == 6 ? "NVRTC_ERROR_COMPILATION" : result == 5 ? "NVRTC_ERROR_INVALID_OPTION" : "NVRTC_ERROR_INTERNAL_ERROR";
}

int nvrtcCreateProgram(
    Program **out, const char *source, const char *name, int headers, const char *const *text, const char *const *names) {
    if (!name || headers || text || names) return 3;
    *out = calloc(1, sizeof **out);
    (*out)->source = strdup(source);
    (*out)->log = strdup("");
    return 0;
}

int nvrtcDestroyProgram(Program **program) {
    free((*program)->source);
    free((*program)->log);
    free((*program)->image);
    free(*program);
    *program = NULL;
    return 0;
}

static int fail(Program *program, int result, const char *log) {
    free(program->log);
    program->log = strdup(log);
    return result;
}

int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    CALL(nvrtcCompileProgram);
    bool has_architecture = false;
    for (int i = 0; i < count; i++) {
        if (!strcmp(options[i], "--no-such-option")) return fail(program, 5, "unrecognized option");
        has_architecture |= !strcmp(options[i], "--gpu-architecture=sm_90") || !strcmp(options[i], "--gpu-architecture=sm_90a");
    }
    if (!has_architecture) return fail(program, 5, "no architecture of the device");
    if (strstr(program->source, "#error")) return fail(program, 6, "k.cu(1): error: #error directive\n1 error detected\n");
    program->size = 64 + strlen(program->source) + 1;
    program->image = calloc(1, program->size);
    memcpy(program->image, "\177ELF\2\1", 6);
    program->image[18] = (char)190;
    strcpy(program->image + 64, program->source);
    return 0;
}

int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = strlen(program->log) + 1;
    return 0;
}
int nvrtcGetProgramLog(Program *program, char *log) {
    strcpy(log, program->log);
    return 0;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) {
    *size = program->size;
    return 0;
}
int nvrtcGetCUBIN(Program *program, char *image) {
    memcpy(image, program->image, program->size);
    return 0;
}
int nvrtcGetPTXSize(Program *program, size_t *size) {
    (void)program, (void)size;
    return 11;
}
int nvrtcGetPTX(Program *program, char *text) {
    (void)program, (void)text;
    return 11;
}
