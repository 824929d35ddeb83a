/* From sums of RH_SUM to an output pixel; included once for each type. */
#include "int_requant.h"
#include "kernels.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

#define RH_INLINE static inline __attribute__((always_inline))

/* The last steps: y = requantised(rounded(sum) * multiplier + bias + factor * residual). */
RH_INLINE void finish_lanes(const rh_pixels *p, int pixel, int at, int lanes, const RH_SUM *restrict sum,
                            const rh_requant *requant) {
    const rh_requant q = *requant;
    int16_t *restrict y = (int16_t *)p->output[pixel] + at;
    const int16_t *restrict r = p->has_residual ? (const int16_t *)p->residual[pixel] + at : 0;
    const int64_t half = q.pre > 0 ? (int64_t)1 << (q.pre - 1) : 0;
    for (int n = 0; n < lanes; n++) {
        const int64_t t = ((sum[n] + half) >> q.pre) * q.multiplier[n] + q.bias[n];
        y[n] = (int16_t)rh_requantised(r == 0 ? t : t + q.factors[0] * r[n], &q);
    }
}

#if defined(__AVX512BW__)
/* The same for RH_LANES, by hand: compilers take shorter vectors where 16 bits meet 64. All factors fit 32 bits. */
RH_INLINE void finish_whole(const rh_pixels *p, int pixel, int at, const RH_SUM *sum, const rh_requant *q) {
    const __m512i half = _mm512_set1_epi64(q->pre > 0 ? (int64_t)1 << (q->pre - 1) : 0);
    const __m512i rounding = _mm512_set1_epi64((int64_t)1 << (q->shift - 1));
    const __m128i pre = _mm_cvtsi32_si128(q->pre), shift = _mm_cvtsi32_si128(q->shift);
    for (int n = at; n < at + RH_LANES; n += RH_LANES / 2, sum += RH_LANES / 2) {
        const __m512i sums = sizeof *sum == 8 ? _mm512_loadu_si512(sum)
                                              : _mm512_cvtepi32_epi64(_mm256_loadu_si256((const void *)sum));
        const __m512i multiplier = _mm512_cvtepi32_epi64(_mm256_loadu_si256((const void *)(q->multiplier + n - at)));
        __m512i t = _mm512_mul_epi32(_mm512_sra_epi64(_mm512_add_epi64(sums, half), pre), multiplier);
        t = _mm512_add_epi64(t, _mm512_loadu_si512(q->bias + n - at));
        if (p->has_residual) {
            const int16_t *r = (const int16_t *)p->residual[pixel] + n;
            const __m512i factor = _mm512_set1_epi64(q->factors[0]);
            t = _mm512_add_epi64(t, _mm512_mul_epi32(factor, _mm512_cvtepi16_epi64(_mm_loadu_si128((const void *)r))));
        }
        t = _mm512_sra_epi64(_mm512_add_epi64(t, rounding), shift);
        t = _mm512_min_epi64(_mm512_max_epi64(t, _mm512_set1_epi64(q->low)), _mm512_set1_epi64(q->high));
        _mm_storeu_si128((void *)((int16_t *)p->output[pixel] + n), _mm512_cvtepi64_epi16(t));
    }
}
#else
RH_INLINE void finish_whole(const rh_pixels *p, int pixel, int at, const RH_SUM *sum, const rh_requant *q) {
    finish_lanes(p, pixel, at, RH_LANES, sum, q);
}
#endif

/* RH_LANES channels from `channel` on, or all `rest` that are left; those of the pixel start at `output`. */
RH_INLINE void finish(const rh_pixels *p, int pixel, int output, int channel, int rest, const RH_SUM *sum,
                      const rh_requant *requant) {
    rh_requant q = *requant;
    q.multiplier += channel;
    q.bias += channel;
    if (rest >= RH_LANES) {
        finish_whole(p, pixel, output + channel, sum, &q);
    } else {
        finish_lanes(p, pixel, output + channel, rest, sum, &q);
    }
}
