// What the parts of the stand-in share: counters, and the memory of the "device".
#pragma once
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "acl/acl.h"
#include "acl/acl_base.h"
#include "acl/acl_mdl.h"
#include "acl/acl_rt.h"
#include "acl/acl_rt_memory_soma.h"

#define MAX_DEVICES 8
#define HUGE_PAGE ((size_t)2 << 20)
#define ACL_NO_DEVICE 107001
#define ACL_NO_CONTEXT 107002

// Order and names are read by driver.py.
typedef struct {
    uint64_t mallocs, frees, oom, bytes, peak, last_policy;
    uint64_t maps, unmaps, reservations, physical;
    uint64_t copies, copied_bytes, host_bytes;
    uint64_t async_mallocs, async_frees, trims, pools;
    uint64_t streams, events, captures, replays, bad_frees;
} fake_stats_t;

extern fake_stats_t fake_stats[MAX_DEVICES];
extern pthread_mutex_t fake_lock;

size_t fake_round(size_t n);          // to whole huge pages
size_t fake_capacity(void);           // bytes of memory per device
int fake_device(void);                // the calling thread's device, 0 when it has none
uint64_t fake_number(const char *name, uint64_t otherwise);
aclError fake_alloc(void **out, size_t n, int policy);
aclError fake_release(void *p);
