/* Convolution of bytes without sign, weights of 8 bits, four products to a lane.
 *
 * A panel holds its rows in fours: [row / 4][RH_LANES][row % 4]. Of a four at an end of a run only some may belong to it.
 */
#include <string.h>

#include "kernels.h"

#if defined(__AVX512VNNI__)

#define RH_SUM int32_t
#include "int_finish.h"

enum { RH_TILE = 12, RH_PANELS = 2, RH_FOUR = 4 };
static const uint32_t RH_ALL = UINT32_MAX;

/* Four rows for all pixels of a tile, of the inputs those bytes that `mask` keeps. */
RH_INLINE void four(__m512i (*restrict sums)[RH_PANELS], const uint8_t *const *x, int at, const int8_t *w,
                    int64_t panel_stride, const uint32_t mask, const int tile, const int panels) {
    __m512i weights[RH_PANELS];
#pragma GCC unroll 2
    for (int b = 0; b < panels; b++) weights[b] = _mm512_loadu_si512(w + b * panel_stride);
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
        uint32_t bytes;
        memcpy(&bytes, x[m] + at, sizeof bytes);
        const __m512i xs = _mm512_set1_epi32((int)(bytes & mask));
#pragma GCC unroll 2
        for (int b = 0; b < panels; b++) sums[m][b] = _mm512_dpbusd_epi32(sums[m][b], xs, weights[b]);
    }
}

RH_INLINE void tile(const rh_conv2d_unit *u, const rh_pixels *p, int first, const int tile, const int panels) {
    __m512i sums[RH_TILE][RH_PANELS];
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
#pragma GCC unroll 2
        for (int b = 0; b < panels; b++) sums[m][b] = _mm512_loadu_si512(u->start + b * RH_LANES);
    }
    for (int r = 0; r < u->num_runs; r++) {
        const rh_run_of_rows run = u->runs[r];
        const int before = run.row % RH_FOUR, count = before + run.length;
        const int8_t *w = (const int8_t *)u->panel + (int64_t)(run.row - before) * RH_LANES;
        const uint8_t *x[RH_TILE];
        uint32_t mask = RH_ALL << 8 * before;
        int at = 0;
#pragma GCC unroll 16
        for (int m = 0; m < tile; m++)
            x[m] = (const uint8_t *)p->input[first + m] + u->input + run.input - before;
        if (before > 0 && count >= RH_FOUR) {
            four(sums, x, 0, w, u->panel_stride, mask, tile, panels);
            at = RH_FOUR;
            mask = RH_ALL;
        }
        for (; at + RH_FOUR <= count; at += RH_FOUR)
            four(sums, x, at, w + at * RH_LANES, u->panel_stride, RH_ALL, tile, panels);
        if (at < count) {
            mask &= RH_ALL >> 8 * (RH_FOUR - (count - at));
            four(sums, x, at, w + at * RH_LANES, u->panel_stride, mask, tile, panels);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
#pragma GCC unroll 2
        for (int b = 0; b < panels; b++) {
            int32_t sum[RH_LANES];
            _mm512_storeu_si512(sum, sums[m][b]);
            finish(p, first + m, u->output, b * RH_LANES, u->channels - b * RH_LANES, sum, &u->after.requant);
        }
    }
}

RH_INLINE void tiles(const rh_conv2d_unit *u, const rh_pixels *p, const int panels) {
    int m = 0;
    for (; m + RH_TILE <= p->count; m += RH_TILE) tile(u, p, m, RH_TILE, panels);
    if (m + 4 <= p->count) {
        tile(u, p, m, 4, panels);
        m += 4;
    }
    for (; m < p->count; m++) tile(u, p, m, 1, panels);
}

void RH_KERNEL(u8_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);

void RH_KERNEL(u8_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels) {
    unit->channels > RH_LANES ? tiles(unit, pixels, 2) : tiles(unit, pixels, 1);
}

#endif
