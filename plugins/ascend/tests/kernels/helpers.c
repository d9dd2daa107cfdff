// What LLVM and MLIR expect of their runtime: float32 -> bfloat16, and a copy between memrefs of any strides.
#include <stdint.h>
#include <string.h>
#include <xmmintrin.h>

__m128 __truncsfbf2(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits += 0x7fff + ((bits >> 16) & 1);
    bits >>= 16;
    __m128 out = _mm_setzero_ps();
    memcpy(&out, &bits, 4);
    return out;
}

typedef struct { int64_t rank; void *descriptor; } any_memref_t;
typedef struct { char *base; char *data; int64_t offset; int64_t sizes_then_strides[]; } memref_t;

void memrefCopy(int64_t element, any_memref_t *from, any_memref_t *to) {
    memref_t *s = from->descriptor, *d = to->descriptor;
    int64_t rank = from->rank, total = 1, index[8] = {0};
    for (int64_t i = 0; i < rank; i++) total *= s->sizes_then_strides[i];
    for (int64_t n = 0; n < total; n++) {
        int64_t a = s->offset, b = d->offset;
        for (int64_t i = 0; i < rank; i++) {
            a += index[i] * s->sizes_then_strides[rank + i];
            b += index[i] * d->sizes_then_strides[rank + i];
        }
        memcpy(d->data + b * element, s->data + a * element, element);
        for (int64_t i = rank; i-- > 0;) {
            if (++index[i] < s->sizes_then_strides[i]) break;
            index[i] = 0;
        }
    }
}
