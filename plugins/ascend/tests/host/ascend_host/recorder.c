// libopapi.so that executes nothing: it writes down each aclnn call with the descriptors torch-npu made for it.
//
// Works because torch-npu sets workspace size and executor to zero before it asks for them. C++ evaluates the arguments
// of such a call from right to left, so descriptors arrive last first; they are printed in the order of the signature.
// The part after ENTRY_POINTS is generated: one function per name that libtorch_npu.so can look up.
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64
#define LONGEST 160
static char parts[MOST][LONGEST];
static int count;

static void note(const char *format, ...) {
    va_list args;
    if (count == MOST) return;
    va_start(args, format);
    vsnprintf(parts[count++], LONGEST, format, args);
    va_end(args);
}

static const char *type_name(int type) {
    static char other[16];
    switch (type) {
        case 0: return "fp32";
        case 1: return "fp16";
        case 2: return "int8";
        case 3: return "int32";
        case 4: return "uint8";
        case 9: return "int64";
        case 11: return "fp64";
        case 12: return "bool";
        case 27: return "bf16";
        case 29: return "int4";
        case 36: return "e4m3";
        default: snprintf(other, sizeof other, "dt%d", type); return other;
    }
}

static int is_dense(const int64_t *shape, const int64_t *stride, uint64_t n) {
    int64_t step = 1;
    for (uint64_t i = n; i-- > 0; step *= shape[i])
        if (shape[i] != 1 && stride[i] != step) return 0;
    return 1;
}

static int joined(char *out, size_t room, const int64_t *values, uint64_t n) {
    int used = 0;
    for (uint64_t i = 0; i < n && used < (int)room; i++) used += snprintf(out + used, room - used, "%s%" PRId64, i ? "," : "", values[i]);
    return used;
}

void *aclCreateTensor(const int64_t *shape, uint64_t n, int type, const int64_t *stride, int64_t offset, int format, const int64_t *storage,
                      uint64_t storage_n, void *p) {
    char dims[96] = "", steps[96] = "", extra[120] = "";
    joined(dims, sizeof dims, shape, n);
    if (stride && !is_dense(shape, stride, n)) {
        joined(steps, sizeof steps, stride, n);
        snprintf(extra, sizeof extra, " strides(%s)", steps);
    }
    // ND, NCDHW and NCL only name the axes; other formats lay values out in another way.
    if (format > 3 && format != 30 && format != 47) snprintf(extra + strlen(extra), sizeof extra - strlen(extra), " format%d", format);
    note("%s[%s]%s", type_name(type), dims, extra);
    return calloc(1, 16);
}
void *aclCreateScalar(void *value, int type) {
    if (type == 0) note("%g", *(float *)value);
    else if (type == 11) note("%g", *(double *)value);
    else if (type == 9) note("%" PRId64, *(int64_t *)value);
    else if (type == 3) note("%d", *(int32_t *)value);
    else note("scalar %s", type_name(type));
    return calloc(1, 16);
}
void *aclCreateIntArray(const int64_t *values, uint64_t n) {
    char text[120] = "";
    joined(text, sizeof text, values, n);
    note("(%s)", text);
    return calloc(1, 16);
}
void *aclCreateBoolArray(const _Bool *values, uint64_t n) { note("bools(%" PRIu64 ")", n); return calloc(1, 16); }
void *aclCreateFloatArray(const float *values, uint64_t n) { note("floats(%" PRIu64 ")", n); return calloc(1, 16); }
void *aclCreateTensorList(const void *const *values, uint64_t n) { note("list of %" PRIu64, n); return calloc(1, 16); }
void *aclCreateScalarList(const void *const *values, uint64_t n) { note("scalars(%" PRIu64 ")", n); return calloc(1, 16); }
int aclDestroyTensor(void *p) { free(p); return 0; }
int aclDestroyScalar(void *p) { free(p); return 0; }
int aclDestroyIntArray(void *p) { free(p); return 0; }
int aclDestroyBoolArray(void *p) { free(p); return 0; }
int aclDestroyFloatArray(void *p) { free(p); return 0; }
int aclDestroyTensorList(void *p) { free(p); return 0; }
int aclDestroyScalarList(void *p) { free(p); return 0; }

static int record(const char *name, size_t length) {
    const char *log = getenv("FAKE_ACLNN_LOG");
    FILE *file = log ? fopen(log, "a") : NULL;
    if (file) {
        fprintf(file, "%.*s(", (int)length, name);
        for (int i = count; i-- > 0;) fprintf(file, "%s%s", parts[i], i ? ", " : "");
        fprintf(file, ")\n");
        fclose(file);
    }
    count = 0;
    return 0;
}
// ENTRY_POINTS
