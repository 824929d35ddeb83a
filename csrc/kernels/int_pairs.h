/* Products of int16_t, summed in pairs: a lane of 32 bits holds two neighbours of 16, of which x and w make
 * x0 * w0 + x1 * w1. GNU vectors, but for the instruction that does just that. */
#ifndef RH_INT_PAIRS_H
#define RH_INT_PAIRS_H

#include <string.h>

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
enum { RH_BYTES = 64 };
#elif defined(__AVX2__)
enum { RH_BYTES = 32 };
#else
enum { RH_BYTES = 16 };
#endif
enum { RH_WIDE = RH_BYTES / 4, RH_VECTORS = RH_LANES / RH_WIDE }; /* lanes of a vector; vectors for RH_LANES of them */

typedef int8_t rh_eights __attribute__((vector_size(RH_BYTES / 2)));
typedef int16_t rh_singles __attribute__((vector_size(RH_BYTES / 2)));
typedef int16_t rh_pairs __attribute__((vector_size(RH_BYTES)));
typedef int32_t rh_words __attribute__((vector_size(RH_BYTES)));
typedef uint32_t rh_counts __attribute__((vector_size(RH_BYTES)));
typedef int32_t rh_half __attribute__((vector_size(RH_BYTES / 2)));
typedef int64_t rh_longs __attribute__((vector_size(RH_BYTES)));

/* RH_LANES * 2 / RH_VECTORS weights */
static inline rh_pairs rh_load_int8_t(const int8_t *w) {
#if defined(__AVX512BW__)
    return (rh_pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)w));
#else
    rh_eights v;
    memcpy(&v, w, sizeof v);
    return __builtin_convertvector(v, rh_pairs);
#endif
}

static inline rh_pairs rh_load_int16_t(const int16_t *w) {
    rh_pairs v;
    memcpy(&v, w, sizeof v);
    return v;
}

/* x[0] and x[1] in every lane; or x[0] alone, as the `first` or the second of the pair. */
static inline rh_pairs rh_both(const int16_t *x) {
    int32_t v;
    memcpy(&v, x, sizeof v);
    return (rh_pairs)(v - (rh_words){0});
}

static inline rh_pairs rh_lone(const int16_t *x, int first) {
    const int16_t v[2] = {first ? *x : 0, first ? 0 : *x};
    return rh_both(v);
}

/* No overflow: one side has no -2^15. */
static inline rh_words rh_products(rh_pairs x, rh_pairs w) {
#if defined(__AVX512BW__)
    return (rh_words)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
    return (rh_words)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__)
    return (rh_words)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
    const rh_words a = (rh_words)x, b = (rh_words)w; /* which half is the first does not matter */
    return (a >> 16) * (b >> 16) + (a << 16 >> 16) * (b << 16 >> 16);
#endif
}

/* RH_WIDE numbers, each in a lane of its own. */
static inline rh_words rh_widen_int16_t(const int16_t *x) {
#if defined(__AVX512BW__)
    return (rh_words)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)x));
#else
    rh_singles v;
    memcpy(&v, x, sizeof v);
    return __builtin_convertvector(v, rh_words);
#endif
}

static inline rh_words rh_widen_int8_t(const int8_t *x) {
    int16_t v[RH_WIDE];
    for (int n = 0; n < RH_WIDE; n++) v[n] = x[n];
    return rh_widen_int16_t(v);
}

/* Sums of 32 bits, and of 64. */
typedef rh_words rh_sums_int32_t;
typedef struct {
    rh_longs low;
    rh_longs high;
} rh_sums_int64_t;

/* Lanes that nobody reads may wrap around. */
static inline void rh_add_int32_t(rh_sums_int32_t *sums, rh_words v) { *sums = (rh_words)((rh_counts)*sums + (rh_counts)v); }

static inline void rh_add_int64_t(rh_sums_int64_t *sums, rh_words v) {
#if defined(__AVX512BW__)
    sums->low += (rh_longs)_mm512_cvtepi32_epi64(_mm512_castsi512_si256((__m512i)v));
    sums->high += (rh_longs)_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((__m512i)v, 1));
#else
    rh_half half[2];
    memcpy(half, &v, sizeof v);
    sums->low += __builtin_convertvector(half[0], rh_longs);
    sums->high += __builtin_convertvector(half[1], rh_longs);
#endif
}

/* What RH_WIDE sums hold while pairs are added. Those of 64 bits take the bytes of each weight apart, w = 256 high + low,
 * into two sums of 32, which is exact for so many rows: 256 * 255 * (2^15 - 1) < 2^31. */
typedef rh_words rh_dots_int32_t;
typedef struct {
    rh_words high;
    rh_words low;
} rh_dots_int64_t;
enum { RH_ROWS_int32_t = INT32_MAX, RH_ROWS_int64_t = 256 };

static inline void rh_dot_int32_t(rh_dots_int32_t *dots, rh_pairs x, rh_pairs w) {
#if defined(__AVX512VNNI__)
    *dots = (rh_words)_mm512_dpwssd_epi32((__m512i)*dots, (__m512i)w, (__m512i)x);
#else
    *dots += rh_products(x, w);
#endif
}

static inline void rh_dot_int64_t(rh_dots_int64_t *dots, rh_pairs x, rh_pairs w) {
    rh_dot_int32_t(&dots->high, x, w >> 8);
    rh_dot_int32_t(&dots->low, x, w & 255);
}

/* Moves into RH_WIDE sums what `dots` holds; into those of 64 bits by adding. */
static inline void rh_collect_int32_t(int32_t *sum, const rh_dots_int32_t *dots) { memcpy(sum, dots, sizeof *dots); }

static inline void rh_collect_int64_t(int64_t *sum, const rh_dots_int64_t *dots) {
    for (int n = 0; n < RH_WIDE; n++) sum[n] += 256 * (int64_t)dots->high[n] + dots->low[n];
}

#endif
