// libhccl.so for ranks that are processes of one machine: they meet in a shared-memory file and move real bytes.
//
// A collective runs in the call itself, which fits streams that are always finished: every rank writes what it sends into
// its part of the file, all meet, every rank reads what it receives, all meet again. A rank that does not come is a timeout.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define nullptr NULL  // the header is C++ in one place
#include "hccl_types_c.h"
#include "third_party/hccl/inc/hccl/hccl.h"

#define MAX_RANKS 16
#define HEADER ((size_t)4096)

typedef struct { atomic_uint arrived, round; uint64_t counts[MAX_RANKS][MAX_RANKS]; } shared_t;
typedef struct { shared_t *shared; char *parts; size_t room; uint32_t rank, size; char name[128]; } comm_t;

static const size_t SIZES[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
static const char *NAMES[] = {"int8", "int16", "int32", "fp16", "fp32", "int64", "uint64", "uint8", "uint16", "uint32", "fp64", "bf16"};

static size_t bytes(uint64_t count, HcclDataType type) { return count * SIZES[type]; }
static char *part(comm_t *c, uint32_t rank) { return c->parts + rank * c->room; }

static uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static HcclResult meet(comm_t *c) {
    uint32_t round = atomic_load(&c->shared->round);
    time_t end = time(NULL) + (time_t)setting("FAKE_HCCL_TIMEOUT", 180);
    if (atomic_fetch_add(&c->shared->arrived, 1) + 1 == c->size) {
        atomic_store(&c->shared->arrived, 0);
        atomic_fetch_add(&c->shared->round, 1);
        return HCCL_SUCCESS;
    }
    while (atomic_load(&c->shared->round) == round) {
        if (time(NULL) > end) {
            fprintf(stderr, "emulated HCCL: rank %u of %u waited in vain in %s\n", c->rank, c->size, c->name);
            return HCCL_E_TIMEOUT;
        }
        nanosleep(&(struct timespec){0, 200000}, NULL);
    }
    return HCCL_SUCCESS;
}

static void note(const comm_t *c, const char *format, ...) {
    const char *log = getenv("FAKE_ACLNN_LOG");
    FILE *file = log ? fopen(log, "a") : NULL;
    va_list args;
    if (!file) return;
    va_start(args, format);
    vfprintf(file, format, args);
    va_end(args);
    fprintf(file, " of %u ranks\n", c->size);
    fclose(file);
}

// Write `n` bytes where others can read them; HCCL_E_MEMORY beyond the room of a part.
static HcclResult publish(comm_t *c, const void *from, size_t n) {
    if (n > c->room) {
        fprintf(stderr, "emulated HCCL: %zu bytes exceed FAKE_HCCL_MB\n", n);
        return HCCL_E_MEMORY;
    }
    if (n) memcpy(part(c, c->rank), from, n);
    return meet(c);
}

HcclResult HcclGetRootInfo(HcclRootInfo *info) {
    static atomic_uint made;
    memset(info, 0, sizeof *info);
    snprintf(info->internal, sizeof info->internal, "/turbort-hccl-%d-%u", (int)getpid(), atomic_fetch_add(&made, 1));
    return HCCL_SUCCESS;
}

HcclResult HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo *info, uint32_t rank, HcclComm *out) {
    if (ranks > MAX_RANKS || rank >= ranks) return HCCL_E_PARA;
    comm_t *c = calloc(1, sizeof *c);
    c->rank = rank;
    c->size = ranks;
    c->room = (size_t)setting("FAKE_HCCL_MB", 64) << 20;
    snprintf(c->name, sizeof c->name, "%s", info->internal);
    size_t whole = HEADER + ranks * c->room;  // sparse: only what is written takes memory
    int file = shm_open(c->name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, (off_t)whole)) return HCCL_E_OPEN_FILE_FAILURE;
    char *base = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (base == MAP_FAILED) return HCCL_E_MEMORY;
    c->shared = (shared_t *)base;
    c->parts = base + HEADER;
    *out = c;
    HcclResult met = meet(c);
    if (rank == 0) shm_unlink(c->name);
    return met;
}
HcclResult HcclCommInitRootInfoConfig(uint32_t n, const HcclRootInfo *info, uint32_t rank, const HcclCommConfig *config, HcclComm *out) { return HcclCommInitRootInfo(n, info, rank, out); }

HcclResult HcclCommDestroy(HcclComm comm) {
    comm_t *c = comm;
    munmap(c->shared, HEADER + c->size * c->room);
    free(c);
    return HCCL_SUCCESS;
}

HcclResult HcclGetCommName(HcclComm comm, char *name) { strcpy(name, ((comm_t *)comm)->name + 1); return HCCL_SUCCESS; }
HcclResult HcclGetRankSize(HcclComm comm, uint32_t *size) { *size = ((comm_t *)comm)->size; return HCCL_SUCCESS; }
HcclResult HcclGetRankId(HcclComm comm, uint32_t *rank) { *rank = ((comm_t *)comm)->rank; return HCCL_SUCCESS; }
HcclResult HcclGetCommAsyncError(HcclComm comm, HcclResult *error) { *error = HCCL_SUCCESS; return HCCL_SUCCESS; }
HcclResult HcclSetConfig(HcclConfig config, HcclConfigValue value) { return HCCL_SUCCESS; }
HcclResult HcclBarrier(HcclComm comm, aclrtStream stream) { return meet(comm); }

HcclResult HcclBroadcast(void *buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm, aclrtStream stream) {
    comm_t *c = comm;
    note(c, "HcclBroadcast(%s[%lu] from %u)", NAMES[type], count, root);
    HcclResult code = publish(c, buffer, c->rank == root ? bytes(count, type) : 0);
    if (code) return code;
    if (c->rank != root) memcpy(buffer, part(c, root), bytes(count, type));
    return meet(c);
}

HcclResult HcclAllGather(void *from, void *to, uint64_t count, HcclDataType type, HcclComm comm, aclrtStream stream) {
    comm_t *c = comm;
    size_t n = bytes(count, type);
    note(c, "HcclAllGather(%s[%lu])", NAMES[type], count);
    HcclResult code = publish(c, from, n);
    if (code) return code;
    for (uint32_t r = 0; r < c->size; r++) memcpy((char *)to + r * n, part(c, r), n);
    return meet(c);
}

HcclResult HcclAlltoAll(const void *from, uint64_t sent, HcclDataType sent_type, const void *to, uint64_t count, HcclDataType type, HcclComm comm,
                        aclrtStream stream) {
    comm_t *c = comm;
    size_t n = bytes(count, type);
    note(c, "HcclAlltoAll(%s[%lu] per rank)", NAMES[type], count);
    if (n != bytes(sent, sent_type)) return HCCL_E_PARA;
    HcclResult code = publish(c, from, n * c->size);
    if (code) return code;
    for (uint32_t r = 0; r < c->size; r++) memcpy((char *)to + r * n, part(c, r) + c->rank * n, n);
    return meet(c);
}

HcclResult HcclAlltoAllV(const void *from, const void *counts, const void *starts, HcclDataType type, const void *to, const void *to_counts,
                         const void *to_starts, HcclDataType to_type, HcclComm comm, aclrtStream stream) {
    comm_t *c = comm;
    const uint64_t *n = counts, *at = starts, *to_n = to_counts, *to_at = to_starts;
    size_t sent = 0, unit = SIZES[type];
    for (uint32_t r = 0; r < c->size; r++) {
        if ((at[r] + n[r]) * unit > sent) sent = (at[r] + n[r]) * unit;
        c->shared->counts[c->rank][r] = at[r];
    }
    note(c, "HcclAlltoAllV(%s[%lu] sent)", NAMES[type], sent / unit);
    HcclResult code = type == to_type ? publish(c, from, sent) : HCCL_E_PARA;
    if (code) return code;
    for (uint32_t r = 0; r < c->size; r++) memcpy((char *)to + to_at[r] * unit, part(c, r) + c->shared->counts[r][c->rank] * unit, to_n[r] * unit);
    return meet(c);
}

static float bfloat(const void *p) {
    uint32_t bits = (uint32_t)*(const uint16_t *)p << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static double load(const char *p, HcclDataType type) {
    switch (type) {
        case HCCL_DATA_TYPE_INT8: return *(const int8_t *)p;
        case HCCL_DATA_TYPE_INT32: return *(const int32_t *)p;
        case HCCL_DATA_TYPE_INT64: return (double)*(const int64_t *)p;
        case HCCL_DATA_TYPE_FP16: return (double)*(const _Float16 *)p;
        case HCCL_DATA_TYPE_BFP16: return bfloat(p);
        case HCCL_DATA_TYPE_FP32: return *(const float *)p;
        default: return 0;
    }
}

static int store(char *p, HcclDataType type, double value) {
    switch (type) {
        case HCCL_DATA_TYPE_INT8: *(int8_t *)p = (int8_t)value; return 1;
        case HCCL_DATA_TYPE_INT32: *(int32_t *)p = (int32_t)value; return 1;
        case HCCL_DATA_TYPE_INT64: *(int64_t *)p = (int64_t)value; return 1;
        case HCCL_DATA_TYPE_FP16: *(_Float16 *)p = (_Float16)value; return 1;
        case HCCL_DATA_TYPE_FP32: *(float *)p = (float)value; return 1;
        case HCCL_DATA_TYPE_BFP16: {
            float wide = (float)value;
            uint32_t bits;
            memcpy(&bits, &wide, 4);
            *(uint16_t *)p = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
            return 1;
        }
        default: return 0;
    }
}

static HcclResult reduce(comm_t *c, void *to, uint64_t first, uint64_t count, HcclDataType type, HcclReduceOp op) {
    for (uint64_t i = 0; i < count; i++) {
        size_t at = bytes(first + i, type);
        double total = load(part(c, 0) + at, type);
        for (uint32_t r = 1; r < c->size; r++) {
            double value = load(part(c, r) + at, type);
            total = op == HCCL_REDUCE_SUM ? total + value : op == HCCL_REDUCE_PROD ? total * value
                  : (op == HCCL_REDUCE_MAX) == (value > total) ? value : total;
        }
        if (!store((char *)to + bytes(i, type), type, total)) return HCCL_E_NOT_SUPPORT;
    }
    return meet(c);
}

HcclResult HcclAllReduce(void *from, void *to, uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm, aclrtStream stream) {
    comm_t *c = comm;
    note(c, "HcclAllReduce(%s[%lu] op %d)", NAMES[type], count, op);
    HcclResult code = publish(c, from, bytes(count, type));
    return code ? code : reduce(c, to, 0, count, type, op);
}

HcclResult HcclReduceScatter(void *from, void *to, uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm, aclrtStream stream) {
    comm_t *c = comm;
    note(c, "HcclReduceScatter(%s[%lu] op %d)", NAMES[type], count, op);
    HcclResult code = publish(c, from, bytes(count * c->size, type));
    return code ? code : reduce(c, to, c->rank * count, count, type, op);
}
