// An AscendCL memory pool behind torch-npu's NPUPluggableAllocator and MemPool.
//
// Two pairs of functions, one per mode: tb_malloc/tb_free take whole segments from aclrtMalloc (huge pages first), and
// tb_soma_malloc/tb_soma_free take them from a stream-ordered pool of the driver (aclrtMemPool*Async), where it has one.
// Nothing is linked: AscendCL is looked up in the library that torch-npu has already loaded, so this file needs the
// headers of the torch-npu wheel and no CANN to compile, and an old driver without stream-ordered pools still loads it.
//
// Per device there is a cap on what may be held, a reserve of freed segments that later ones reuse, and counters.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#include "acl/acl_base.h"
#include "acl/acl_rt.h"
#if __has_include("acl/acl_rt_memory_soma.h")
#include "acl/acl_rt_memory_soma.h"
#define HAVE_SOMA 1
#endif

#define EXPORT __attribute__((visibility("default")))
#define MAX_DEVICES 64

typedef struct {
    uint64_t requests;   // segments asked for
    uint64_t reused;     // of those, served from the reserve
    uint64_t frees;      // segments given back by torch-npu
    uint64_t refused;    // over the cap, or out of device memory
    uint64_t live;       // bytes in use
    uint64_t peak;       // most bytes in use
    uint64_t reserve;    // bytes freed and kept
    uint64_t limit;      // cap on live + reserve, 0 for none
} tb_stats_t;

typedef struct spare {
    void *address;
    size_t size;
    struct spare *next;
} spare_t;

typedef struct {
    tb_stats_t stats;
    uint64_t keep;       // most bytes the reserve may hold
    spare_t *spares;
#ifdef HAVE_SOMA
    aclrtMemPool soma;
#endif
} device_t;

static struct {
    __typeof__(&aclrtMalloc) malloc;
    __typeof__(&aclrtFree) free;
    __typeof__(&aclrtSynchronizeStream) synchronize;
#ifdef HAVE_SOMA
    __typeof__(&aclrtMemPoolCreate) create;
    __typeof__(&aclrtMemPoolMallocAsync) malloc_async;
    __typeof__(&aclrtMemPoolFreeAsync) free_async;
    __typeof__(&aclrtMemPoolTrimTo) trim;
    __typeof__(&aclrtMemPoolSetAttr) set;
#endif
} acl;

static device_t devices[MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char message[512] = "";

static int look_up(void) {
    static void *library;
    if (acl.malloc) return 1;
    library = dlopen("libascendcl.so", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(message, sizeof message, "libascendcl.so is not loaded: %s", dlerror());
        return 0;
    }
    acl.free = (__typeof__(acl.free))dlsym(library, "aclrtFree");
    acl.synchronize = (__typeof__(acl.synchronize))dlsym(library, "aclrtSynchronizeStream");
#ifdef HAVE_SOMA
    acl.create = (__typeof__(acl.create))dlsym(library, "aclrtMemPoolCreate");
    acl.malloc_async = (__typeof__(acl.malloc_async))dlsym(library, "aclrtMemPoolMallocAsync");
    acl.free_async = (__typeof__(acl.free_async))dlsym(library, "aclrtMemPoolFreeAsync");
    acl.trim = (__typeof__(acl.trim))dlsym(library, "aclrtMemPoolTrimTo");
    acl.set = (__typeof__(acl.set))dlsym(library, "aclrtMemPoolSetAttr");
#endif
    acl.malloc = (__typeof__(acl.malloc))dlsym(library, "aclrtMalloc");
    return acl.malloc && acl.free && acl.synchronize;
}

EXPORT int tb_has_soma(void) {
#ifdef HAVE_SOMA
    return look_up() && acl.create && acl.malloc_async && acl.free_async && acl.trim && acl.set;
#else
    return 0;
#endif
}

static void *refuse(int device, size_t size, const char *why, int code) {
    tb_stats_t *s = &devices[device].stats;
    s->refused++;
    snprintf(message, sizeof message,
             "%s: NPU %d, %.1f MiB asked, %.1f MiB in use, %.1f MiB in reserve, cap %.1f MiB, AscendCL code %d", why, device,
             size / 1048576.0, s->live / 1048576.0, s->reserve / 1048576.0, s->limit / 1048576.0, code);
    return NULL;
}

static void account(tb_stats_t *s, size_t size) {
    s->live += size;
    if (s->live > s->peak) s->peak = s->live;
}

static void trim_locked(device_t *d, uint64_t keep) {
    while (d->spares && d->stats.reserve > keep) {
        spare_t *gone = d->spares;
        d->spares = gone->next;
        d->stats.reserve -= gone->size;
        acl.free(gone->address);
        free(gone);
    }
}

static int over_cap(const device_t *d, size_t size) {
    return d->stats.limit && d->stats.live + d->stats.reserve + size > d->stats.limit;
}

// A kept segment of exactly this size: torch-npu tells the size it asked for when it frees, so sizes must agree.
static void *take_spare(device_t *d, size_t size) {
    for (spare_t **at = &d->spares; *at; at = &(*at)->next) {
        spare_t *found = *at;
        if (found->size != size) continue;
        void *address = found->address;
        *at = found->next;
        d->stats.reserve -= size;
        free(found);
        return address;
    }
    return NULL;
}

EXPORT void *tb_malloc(ssize_t asked, int device, aclrtStream stream) {
    (void)stream;
    void *address = NULL;
    if (asked <= 0 || device < 0 || device >= MAX_DEVICES) return NULL;
    size_t size = (size_t)asked;
    pthread_mutex_lock(&lock);
    device_t *d = &devices[device];
    if (look_up()) {
        d->stats.requests++;
        address = take_spare(d, size);
        if (address) {
            d->stats.reused++;
        } else {
            if (over_cap(d, size)) trim_locked(d, 0);
            if (over_cap(d, size)) {
                refuse(device, size, "the pool's cap is reached", 0);
            } else {
                int code = acl.malloc(&address, size, ACL_MEM_MALLOC_HUGE_FIRST);
                if (code && d->spares) {
                    trim_locked(d, 0);
                    code = acl.malloc(&address, size, ACL_MEM_MALLOC_HUGE_FIRST);
                }
                if (code) address = refuse(device, size, "the device is out of memory", code);
            }
        }
        if (address) account(&d->stats, size);
    }
    pthread_mutex_unlock(&lock);
    return address;
}

EXPORT void tb_free(void *address, size_t size, int device, aclrtStream stream) {
    if (!address || device < 0 || device >= MAX_DEVICES) return;
    // Work that still reads the segment may be queued; the next owner must not overtake it.
    acl.synchronize(stream);
    pthread_mutex_lock(&lock);
    device_t *d = &devices[device];
    d->stats.frees++;
    d->stats.live -= size;
    spare_t *kept = d->stats.reserve + size <= d->keep ? malloc(sizeof *kept) : NULL;
    if (kept) {
        *kept = (spare_t){address, size, d->spares};
        d->spares = kept;
        d->stats.reserve += size;
    } else {
        acl.free(address);
    }
    pthread_mutex_unlock(&lock);
}

#ifdef HAVE_SOMA
static int soma_of(int device, device_t *d) {
    if (d->soma) return 0;
    aclrtMemPoolProps wish = {.allocType = ACL_MEM_ALLOCATION_TYPE_PINNED,
                              .handleType = ACL_MEM_HANDLE_TYPE_NONE,
                              .location = {.id = (uint32_t)device, .type = ACL_MEM_LOCATION_TYPE_DEVICE},
                              .maxSize = d->stats.limit};
    int code = acl.create(&d->soma, &wish);
    // Without a threshold the driver would give freed memory back at every synchronisation.
    uint64_t threshold = d->keep ? d->keep : UINT64_MAX;
    return code ? code : acl.set(d->soma, ACL_RT_MEM_POOL_ATTR_RELEASE_THRESHOLD, &threshold);
}
#endif

EXPORT void *tb_soma_malloc(ssize_t asked, int device, aclrtStream stream) {
    void *address = NULL;
    if (asked <= 0 || device < 0 || device >= MAX_DEVICES || !tb_has_soma()) return NULL;
#ifdef HAVE_SOMA
    pthread_mutex_lock(&lock);
    device_t *d = &devices[device];
    d->stats.requests++;
    int code = soma_of(device, d);
    if (!code) code = acl.malloc_async(&address, (size_t)asked, d->soma, stream);
    if (code)
        address = refuse(device, (size_t)asked, "the stream-ordered pool is out of memory", code);
    else
        account(&d->stats, (size_t)asked);
    pthread_mutex_unlock(&lock);
#endif
    (void)stream;
    return address;
}

EXPORT void tb_soma_free(void *address, size_t size, int device, aclrtStream stream) {
    if (!address || device < 0 || device >= MAX_DEVICES) return;
#ifdef HAVE_SOMA
    pthread_mutex_lock(&lock);
    acl.free_async(address, stream);
    devices[device].stats.frees++;
    devices[device].stats.live -= size;
    pthread_mutex_unlock(&lock);
#endif
    (void)stream;
}

// Settings apply to later requests: `limit` caps live + reserve, `keep` caps the reserve (bytes, 0 for none).
EXPORT void tb_configure(int device, uint64_t limit, uint64_t keep) {
    pthread_mutex_lock(&lock);
    devices[device].stats.limit = limit;
    devices[device].keep = keep;
    pthread_mutex_unlock(&lock);
}

EXPORT void tb_trim(int device, uint64_t keep) {
    pthread_mutex_lock(&lock);
    device_t *d = &devices[device];
    trim_locked(d, keep);
#ifdef HAVE_SOMA
    if (d->soma) acl.trim(d->soma, keep);
#endif
    pthread_mutex_unlock(&lock);
}

EXPORT void tb_stats(int device, tb_stats_t *out) {
    pthread_mutex_lock(&lock);
    *out = devices[device].stats;
    pthread_mutex_unlock(&lock);
}

EXPORT void tb_reset_peak(int device) {
    pthread_mutex_lock(&lock);
    devices[device].stats.peak = devices[device].stats.live;
    pthread_mutex_unlock(&lock);
}

EXPORT const char *tb_message(void) { return message; }
