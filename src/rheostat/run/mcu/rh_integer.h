/* Integers of 8 or 16 bits; docs/quant.md of Rheostat defines every bit of the results. */
#ifndef RH_INTEGER_H
#define RH_INTEGER_H

/* The shift of a negative number must be arithmetic, as it is with every compiler this was tried with. */
typedef char rh_shift_is_arithmetic[(-1 >> 1) == -1 ? 1 : -1];

/* What the arena holds, and a sum of products. An 8-bit value is a byte: two's complement where it is signed. */
#if RH_BITS_ACTIVATIONS == 8
typedef uint8_t rh_element;
#else
typedef int16_t rh_element;
#endif
#if RH_BITS_WEIGHTS == 8
typedef int8_t rh_weight;
#else
typedef int16_t rh_weight;
#endif
/* A product of two bytes fits an int, even one of 16 bits. */
#if RH_BITS_ACTIVATIONS == 8 && RH_BITS_WEIGHTS == 8
typedef int rh_product;
typedef int32_t rh_sum;
#else
typedef int32_t rh_product;
typedef int64_t rh_sum;
#endif
typedef int16_t rh_number;

/* What follows a sum: y = clamp((sum * multiplier + bias + factor * residual) >> shift). The bias contains the half
 * that rounds. What an op does not have is 0. */
typedef struct {
    const int32_t *multiplier;
    const int64_t *bias;
    const int16_t *table;
    int32_t factor[2];
    uint8_t pre;
    uint8_t shift;
    int16_t low;
    int16_t high;
} rh_epilogue;

/* The number that an element stands for; `flip` is 128 for a signed byte and 0 otherwise. */
static inline rh_number rh_get(rh_element x, uint8_t flip) {
#if RH_BITS_ACTIVATIONS == 8
    return (rh_number)((x ^ flip) - flip);
#else
    (void)flip;
    return x;
#endif
}

/* clamp(t >> shift); in 32 bits where only the upper half of t counts, as it does almost always. */
static inline rh_element rh_shifted(int64_t t, const rh_epilogue *e) {
    if (e->shift >= 32) {
        const int32_t y = (int32_t)(t >> 32) >> (e->shift - 32);
        return (rh_element)(y < e->low ? e->low : y > e->high ? e->high : (int16_t)y);
    }
    t >>= e->shift;
    return (rh_element)(t < e->low ? e->low : t > e->high ? e->high : (int16_t)t);
}

static inline rh_element rh_finished(rh_sum sum, size_t channel, const rh_element *residual, uint8_t flip,
                                     const rh_epilogue *e) {
#if RH_BITS_ACTIVATIONS != 8 || RH_BITS_WEIGHTS != 8
    if (e->pre > 0) sum = (sum + ((int64_t)1 << (e->pre - 1))) >> e->pre;
#endif
    int64_t t = (int64_t)(int32_t)sum * e->multiplier[channel] + e->bias[channel];
    if (residual != 0) t += (int64_t)e->factor[0] * rh_get(*residual, flip);
    return rh_shifted(t, e);
}

static inline rh_element rh_point(rh_kind kind, rh_number a, rh_number b, size_t channel, uint8_t flip,
                                  const rh_epilogue *e) {
    int64_t t;
    switch (kind) {
        case RH_TABLE: return (rh_element)e->table[flip != 0 ? a + 127 : a];
        case RH_NORM: return rh_shifted((int64_t)a * e->multiplier[channel] + e->bias[channel], e);
        case RH_ADD: t = (int64_t)e->factor[0] * a + (int64_t)e->factor[1] * b; break;
        case RH_MUL: t = (int64_t)e->factor[0] * ((int32_t)a * b); break;
        default: t = (int64_t)e->factor[0] * a; /* RH_RESCALE */
    }
    return rh_shifted(t + ((int64_t)1 << (e->shift - 1)), e);
}

typedef int64_t rh_total;

static inline rh_number rh_larger(rh_number best, rh_number x) { return x > best ? x : best; }

/* floor((2 f total + count 2^n) / (2 count 2^n)), clamped */
static inline rh_element rh_mean(rh_total total, int32_t count, const rh_epilogue *e) {
    const int64_t half = count * ((int64_t)1 << e->shift), whole = 2 * half, t = (int64_t)2 * e->factor[0] * total + half;
    const int64_t y = t / whole - (t % whole < 0);
    return (rh_element)(y < e->low ? e->low : y > e->high ? e->high : (int16_t)y);
}

#endif
