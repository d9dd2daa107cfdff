// Stream-ordered pools of the driver (aclrtMemPool*): a free block is reused by the next request it is large enough for.
#include "fake.h"

typedef struct block { void *address; size_t size; int used; struct block *next; } block_t;
typedef struct pool { size_t most, reserved, reserved_high, used, used_high; uint64_t threshold; block_t *blocks; struct pool *next; } pool_t;
static pool_t *pools;

aclError aclrtMemPoolCreate(aclrtMemPool *out, const aclrtMemPoolProps *wish) {
    pool_t *p = calloc(1, sizeof *p);
    p->most = wish->maxSize;
    p->next = pools;
    pools = p;
    fake_stats[fake_device()].pools++;
    *out = p;
    return ACL_SUCCESS;
}

aclError aclrtMemPoolTrimTo(aclrtMemPool pool, size_t keep) {
    pool_t *p = pool;
    fake_stats[fake_device()].trims++;
    for (block_t **at = &p->blocks; *at;) {
        block_t *b = *at;
        if (b->used || p->reserved <= keep) { at = &b->next; continue; }
        fake_release(b->address);
        p->reserved -= b->size;
        *at = b->next;
        free(b);
    }
    return ACL_SUCCESS;
}

aclError aclrtMemPoolDestroy(const aclrtMemPool pool) {
    pool_t *p = pool;
    if (p->used) return ACL_ERROR_INVALID_PARAM;
    aclrtMemPoolTrimTo(p, 0);
    for (pool_t **at = &pools; *at; at = &(*at)->next)
        if (*at == p) { *at = p->next; break; }
    fake_stats[fake_device()].pools--;
    free(p);
    return ACL_SUCCESS;
}

aclError aclrtMemPoolMallocAsync(void **out, size_t n, aclrtMemPool pool, aclrtStream stream) {
    pool_t *p = pool;
    size_t size = fake_round(n + 32);
    block_t *best = NULL;
    fake_stats[fake_device()].async_mallocs++;
    for (block_t *b = p->blocks; b; b = b->next)
        if (!b->used && b->size >= size && (!best || b->size < best->size)) best = b;
    if (!best) {
        if (p->most && p->reserved + size > p->most) return ACL_ERROR_RT_MEMORY_ALLOCATION;
        best = calloc(1, sizeof *best);
        aclError code = fake_alloc(&best->address, n, 0);
        if (code) { free(best); return code; }
        best->size = size;
        best->next = p->blocks;
        p->blocks = best;
        p->reserved += size;
        if (p->reserved > p->reserved_high) p->reserved_high = p->reserved;
    }
    best->used = 1;
    p->used += best->size;
    if (p->used > p->used_high) p->used_high = p->used;
    *out = best->address;
    return ACL_SUCCESS;
}

aclError aclrtMemPoolFreeAsync(void *address, aclrtStream stream) {
    fake_stats[fake_device()].async_frees++;
    for (pool_t *p = pools; p; p = p->next)
        for (block_t *b = p->blocks; b; b = b->next)
            if (b->address == address && b->used) {
                b->used = 0;
                p->used -= b->size;
                if (p->reserved > p->threshold) aclrtMemPoolTrimTo(p, p->threshold);
                return ACL_SUCCESS;
            }
    return ACL_ERROR_INVALID_PARAM;
}

aclError aclrtMemPoolSetAttr(aclrtMemPool pool, aclrtMemPoolAttr attribute, void *value) {
    if (attribute == ACL_RT_MEM_POOL_ATTR_RELEASE_THRESHOLD) ((pool_t *)pool)->threshold = *(uint64_t *)value;
    return ACL_SUCCESS;
}

aclError aclrtMemPoolGetAttr(aclrtMemPool pool, aclrtMemPoolAttr attribute, void *value) {
    pool_t *p = pool;
    uint64_t found = 0;
    if (attribute == ACL_RT_MEM_POOL_ATTR_RELEASE_THRESHOLD) found = p->threshold;
    if (attribute == ACL_RT_MEM_POOL_ATTR_RESERVED_MEM_CURRENT) found = p->reserved;
    if (attribute == ACL_RT_MEM_POOL_ATTR_RESERVED_MEM_HIGH) found = p->reserved_high;
    if (attribute == ACL_RT_MEM_POOL_ATTR_USED_MEM_CURRENT) found = p->used;
    if (attribute == ACL_RT_MEM_POOL_ATTR_USED_MEM_HIGH) found = p->used_high;
    *(uint64_t *)value = found;
    return ACL_SUCCESS;
}
