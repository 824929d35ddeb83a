/* Weights above a level become zero. */
#include "kernels.h"

#define RH_MASK(name, type)                                                                                   \
    void RH_KERNEL(name)(type * restrict to, const type *restrict from, const uint8_t *restrict levels,       \
                         int64_t count, int32_t level);                                                       \
    void RH_KERNEL(name)(type * restrict to, const type *restrict from, const uint8_t *restrict levels,       \
                         int64_t count, int32_t level) {                                                      \
        for (int64_t i = 0; i < count; i++) to[i] = levels[i] <= level ? from[i] : 0;                         \
    }

RH_MASK(f32_mask, float)
RH_MASK(i8_mask, int8_t)
RH_MASK(i16_mask, int16_t)
