/* The one rounding of an integer op (docs/quant.md): y = clamp(floor((t + 2^(n-1)) / 2^n), low, high). */
#ifndef RH_INT_REQUANT_H
#define RH_INT_REQUANT_H

#include "kernels.h"

/* The shift of a negative number must be arithmetic, as it is with every compiler this is built with. */
typedef char rh_shift_is_arithmetic[(-1 >> 1) == -1 ? 1 : -1];

static inline int64_t rh_rounded(int64_t t, int32_t n) { return n > 0 ? (t + ((int64_t)1 << (n - 1))) >> n : t; }

static inline int16_t rh_clamped(int64_t t, int32_t low, int32_t high) {
    return (int16_t)(t < low ? low : t > high ? high : t);
}

static inline int16_t rh_requantised(int64_t t, const rh_requant *q) {
    return rh_clamped((t + ((int64_t)1 << (q->shift - 1))) >> q->shift, q->low, q->high);
}

#endif
