// Device memory as host memory: allocations and virtual memory, with caps and books per device.
//
// aclrtMalloc "aligns to 32 bytes and pads by 32" (acl_rt.h). Rounding to 2 MiB pages is an assumption of this stand-in
// about the huge-page policy; no test depends on more than that.
#include "fake.h"

#include <sys/mman.h>
#include <unistd.h>

fake_stats_t fake_stats[MAX_DEVICES];
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;

size_t fake_round(size_t n) { return (n + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE; }

uint64_t fake_number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

size_t fake_capacity(void) { return (size_t)fake_number("FAKE_ACL_HBM_MB", 65536) << 20; }

// --- what is allocated: address -> size and device -------------------------------------------------------------
typedef struct entry {
    void *address;
    size_t size;
    int device;
    struct entry *next;
} entry_t;
static entry_t *table[4096];

static entry_t **bucket(const void *p) { return &table[((uintptr_t)p >> 12) & 4095]; }

static void put(void *p, size_t n, int device) {
    entry_t *e = malloc(sizeof *e), **at = bucket(p);
    *e = (entry_t){p, n, device, *at};
    *at = e;
}

static int take(void *p, size_t *size, int *device) {
    for (entry_t **at = bucket(p); *at; at = &(*at)->next) {
        if ((*at)->address != p) continue;
        entry_t *e = *at;
        *at = e->next;
        *size = e->size;
        *device = e->device;
        free(e);
        return 1;
    }
    return 0;
}

static void *aligned_pages(size_t n, int protection) {
    char *p = mmap(NULL, n + HUGE_PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    char *start = (char *)fake_round((uintptr_t)p);
    if (start > p) munmap(p, start - p);
    munmap(start + n, p + HUGE_PAGE - start);
    return start;
}

aclError fake_alloc(void **out, size_t n, int policy) {
    if (!out || !n) return ACL_ERROR_INVALID_PARAM;
    *out = NULL;
    size_t size = fake_round(n + 32);
    int device = fake_device();
    pthread_mutex_lock(&fake_lock);
    fake_stats_t *s = &fake_stats[device];
    s->last_policy = (uint64_t)policy;
    void *p = s->bytes + s->physical + size > fake_capacity() ? NULL : aligned_pages(size, PROT_READ | PROT_WRITE);
    if (p) {
        put(p, size, device);
        s->mallocs++;
        s->bytes += size;
        if (s->bytes > s->peak) s->peak = s->bytes;
    } else {
        s->oom++;
    }
    pthread_mutex_unlock(&fake_lock);
    *out = p;
    return p ? ACL_SUCCESS : ACL_ERROR_RT_MEMORY_ALLOCATION;
}

aclError fake_release(void *p) {
    size_t size = 0;
    int device = 0;
    pthread_mutex_lock(&fake_lock);
    int known = take(p, &size, &device);
    if (known) {
        fake_stats[device].frees++;
        fake_stats[device].bytes -= size;
    } else {
        fake_stats[fake_device()].bad_frees++;
    }
    pthread_mutex_unlock(&fake_lock);
    if (!known) return ACL_ERROR_INVALID_PARAM;
    munmap(p, size);
    return ACL_SUCCESS;
}

aclError aclrtMalloc(void **p, size_t n, aclrtMemMallocPolicy policy) { return fake_alloc(p, n, policy); }
aclError aclrtMallocAlign32(void **p, size_t n, aclrtMemMallocPolicy policy) { return fake_alloc(p, n, policy); }
aclError aclrtMallocWithCfg(void **p, size_t n, aclrtMemMallocPolicy policy, aclrtMallocConfig *c) { return fake_alloc(p, n, policy); }
aclError aclrtFree(void *p) { return fake_release(p); }

aclError aclrtMallocHost(void **p, size_t n) {
    *p = aligned_alloc(4096, (n + 4095) & ~(size_t)4095);
    fake_stats[0].host_bytes += n;
    return *p ? ACL_SUCCESS : ACL_ERROR_RT_MEMORY_ALLOCATION;
}
aclError aclrtMallocHostWithCfg(void **p, uint64_t n, aclrtMallocConfig *c) { return aclrtMallocHost(p, n); }
aclError aclrtFreeHost(void *p) { free(p); return ACL_SUCCESS; }

aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t *left, size_t *total) {
    fake_stats_t *s = &fake_stats[fake_device()];
    *total = fake_capacity();
    *left = *total - s->bytes - s->physical;
    return ACL_SUCCESS;
}

aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t n, aclrtMemcpyKind kind) {
    if (n > room) return ACL_ERROR_INVALID_PARAM;
    memmove(to, from, n);
    fake_stats[fake_device()].copies++;
    fake_stats[fake_device()].copied_bytes += n;
    return ACL_SUCCESS;
}
aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t n, aclrtMemcpyKind k, aclrtStream s) { return aclrtMemcpy(to, room, from, n, k); }
aclError aclrtMemcpyAsyncWithCondition(void *to, size_t room, const void *from, size_t n, aclrtMemcpyKind k, aclrtStream s) { return aclrtMemcpy(to, room, from, n, k); }
aclError aclrtMemset(void *p, size_t room, int32_t value, size_t n) { if (n > room) return ACL_ERROR_INVALID_PARAM; memset(p, value, n); return ACL_SUCCESS; }
aclError aclrtMemsetAsync(void *p, size_t room, int32_t value, size_t n, aclrtStream s) { return aclrtMemset(p, room, value, n); }

// --- virtual memory: a reservation is inaccessible pages, physical memory a memfd, mapping replaces the pages -----
typedef struct { int file; size_t size; int device; } physical_t;

aclError aclrtReserveMemAddress(void **p, size_t n, size_t alignment, void *wish, uint64_t flags) {
    n = fake_round(n);
    *p = aligned_pages(n, PROT_NONE);
    if (!*p) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    pthread_mutex_lock(&fake_lock);
    put(*p, n, fake_device());
    fake_stats[fake_device()].reservations++;
    pthread_mutex_unlock(&fake_lock);
    return ACL_SUCCESS;
}
aclError aclrtReserveMemAddressNoUCMemory(void **p, size_t n, size_t alignment, void *wish, uint64_t flags) { return aclrtReserveMemAddress(p, n, alignment, wish, flags); }

aclError aclrtReleaseMemAddress(void *p) {
    size_t n;
    int device;
    pthread_mutex_lock(&fake_lock);
    int known = take(p, &n, &device);
    if (known) fake_stats[device].reservations--;
    pthread_mutex_unlock(&fake_lock);
    if (known) munmap(p, n);
    return known ? ACL_SUCCESS : ACL_ERROR_INVALID_PARAM;
}

aclError aclrtMallocPhysical(aclrtDrvMemHandle *handle, size_t n, const aclrtPhysicalMemProp *properties, uint64_t flags) {
    int device = fake_device();
    fake_stats_t *s = &fake_stats[device];
    pthread_mutex_lock(&fake_lock);
    int full = s->bytes + s->physical + n > fake_capacity();
    if (full) s->oom++; else s->physical += n;
    pthread_mutex_unlock(&fake_lock);
    if (full) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    physical_t *made = malloc(sizeof *made);
    *made = (physical_t){memfd_create("npu", 0), n, device};
    if (made->file < 0 || ftruncate(made->file, (off_t)n)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    *handle = (aclrtDrvMemHandle)made;
    return ACL_SUCCESS;
}

aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
    physical_t *gone = (physical_t *)handle;
    pthread_mutex_lock(&fake_lock);
    fake_stats[gone->device].physical -= gone->size;
    pthread_mutex_unlock(&fake_lock);
    close(gone->file);
    free(gone);
    return ACL_SUCCESS;
}

// A mapping starts inside a reservation; its odd address keeps it apart from that in the table.
static void *tagged(void *p) { return (void *)((uintptr_t)p | 1); }

aclError aclrtMapMem(void *p, size_t n, size_t offset, aclrtDrvMemHandle handle, uint64_t flags) {
    physical_t *from = (physical_t *)handle;
    if (mmap(p, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, from->file, (off_t)offset) == MAP_FAILED) return ACL_ERROR_INVALID_PARAM;
    pthread_mutex_lock(&fake_lock);
    put(tagged(p), n, from->device);
    fake_stats[from->device].maps++;
    pthread_mutex_unlock(&fake_lock);
    return ACL_SUCCESS;
}

aclError aclrtUnmapMem(void *p) {
    size_t n;
    int device;
    pthread_mutex_lock(&fake_lock);
    int known = take(tagged(p), &n, &device);
    if (known) fake_stats[device].unmaps++;
    pthread_mutex_unlock(&fake_lock);
    if (known) mmap(p, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return known ? ACL_SUCCESS : ACL_ERROR_INVALID_PARAM;
}

aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp *p, aclrtMemGranularityOptions option, size_t *out) { *out = HUGE_PAGE; return ACL_SUCCESS; }

// --- for tests ---------------------------------------------------------------------------------------------------
void fake_acl_stats(int device, fake_stats_t *out) { pthread_mutex_lock(&fake_lock); *out = fake_stats[device]; pthread_mutex_unlock(&fake_lock); }
