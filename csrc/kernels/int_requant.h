/* The one rounding of an integer op (docs/quant.md): y = clamp(floor((t + 2^(n-1)) / 2^n), low, high). */
#ifndef RH_INT_REQUANT_H
#define RH_INT_REQUANT_H

#include "kernels.h"

/* The shift of a negative number must be arithmetic, as it is with every compiler this is built with. */
typedef char rh_shift_is_arithmetic[(-1 >> 1) == -1 ? 1 : -1];

static inline int32_t rh_clamped(int64_t t, int32_t low, int32_t high) {
    const int64_t least = low, most = high, above = t > least ? t : least;
    return (int32_t)(above < most ? above : most);
}

static inline int32_t rh_requantised(int64_t t, const rh_requant *q) {
    return rh_clamped((t + ((int64_t)1 << (q->shift - 1))) >> q->shift, q->low, q->high);
}

#endif
