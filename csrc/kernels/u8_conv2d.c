/* Convolution of bytes: inputs of 8 bits, weights of 8, four products to a lane. The instruction wants inputs without
 * sign: `offset` is added to them, and `offset` times the weights taken off again.
 *
 * A panel holds its rows in fours: [row / 4][RH_LANES][row % 4]. Inputs become bytes a few hundred rows at a time.
 */
#include "kernels.h"

#if defined(__AVX512VNNI__)

#define RH_SUM int32_t
#include "int_finish.h"

enum { RH_TILE = 12, RH_PANELS = 2, RH_FOUR = 4, RH_CHUNK = 256 };

/* `count` bytes from `skip` on, zeros before and behind. */
RH_INLINE void pack(uint8_t *to, const int16_t *x, int skip, int count, int offset) {
    _mm_storeu_si32(to, _mm_setzero_si128());
    for (int i = 0; i < count; i += 32) {
        const __mmask32 mask = count - i >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (count - i)) - 1;
        const __m512i v = _mm512_maskz_loadu_epi16(mask, x + i);
        const __m512i moved = _mm512_maskz_add_epi16(mask, v, _mm512_set1_epi16((int16_t)offset));
        _mm256_storeu_si256((void *)(to + skip + i), _mm512_cvtepi16_epi8(moved));
    }
}

RH_INLINE void tile(const rh_int_conv2d_unit *u, const rh_pixels *p, int first, int channel, int channels,
                    const int tile, const int panels, const int offset) {
    /* The last of each is the pixel of zeros, which only the offset makes anything of. */
    uint8_t bytes[RH_TILE + 1][RH_CHUNK + 64];
    __m512i sums[RH_TILE + 1][RH_PANELS];
    const int16_t zeros[RH_CHUNK] = {0};
    const int num = offset == 0 ? tile : tile + 1;
#pragma GCC unroll 16
    for (int m = 0; m < num; m++) {
#pragma GCC unroll 2
        for (int b = 0; b < panels; b++) sums[m][b] = _mm512_setzero_si512();
    }
    const int8_t *panel = (const int8_t *)u->panel + channel / RH_LANES * u->panel_stride;
    for (int r = 0; r < u->num_runs; r++) {
        const rh_run_of_rows run = u->runs[r];
        for (int i = 0, count; i < run.length; i += count) {
            const int skip = (run.row + i) % RH_FOUR;
            const int8_t *w = panel + (int64_t)(run.row + i - skip) * RH_LANES;
            count = run.length - i < RH_CHUNK - skip ? run.length - i : RH_CHUNK - skip;
            for (int m = 0; m < num; m++) {
                const int16_t *x = m == tile ? zeros : (const int16_t *)p->input[first + m] + u->input + run.input + i;
                pack(bytes[m], x, skip, count, offset);
            }
            for (int at = 0; at < skip + count; at += RH_FOUR, w += RH_FOUR * RH_LANES) {
                __m512i weights[RH_PANELS];
#pragma GCC unroll 2
                for (int b = 0; b < panels; b++) weights[b] = _mm512_loadu_si512(w + b * u->panel_stride);
#pragma GCC unroll 16
                for (int m = 0; m < num; m++) {
                    const __m512i x = _mm512_broadcastd_epi32(_mm_loadu_si32(bytes[m] + at));
#pragma GCC unroll 2
                    for (int b = 0; b < panels; b++) sums[m][b] = _mm512_dpbusd_epi32(sums[m][b], x, weights[b]);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
#pragma GCC unroll 2
        for (int b = 0; b < panels; b++) {
            int32_t sum[RH_LANES];
            _mm512_storeu_si512(sum, offset == 0 ? sums[m][b] : _mm512_sub_epi32(sums[m][b], sums[tile][b]));
            finish(p, first + m, u->output, channel + b * RH_LANES, channels - b * RH_LANES, sum, &u->requant);
        }
    }
}

RH_INLINE void tiles(const rh_int_conv2d_unit *u, const rh_pixels *p, int channel, int channels, const int panels,
                     const int offset) {
    int m = 0;
    for (; m + RH_TILE <= p->count; m += RH_TILE) tile(u, p, m, channel, channels, RH_TILE, panels, offset);
    if (m + 4 <= p->count) {
        tile(u, p, m, channel, channels, 4, panels, offset);
        m += 4;
    }
    for (; m < p->count; m++) tile(u, p, m, channel, channels, 1, panels, offset);
}

void RH_KERNEL(u8_conv2d)(const rh_int_conv2d_unit *unit, const rh_pixels *pixels);

void RH_KERNEL(u8_conv2d)(const rh_int_conv2d_unit *unit, const rh_pixels *pixels) {
    const int channels = unit->channels, panels = channels > RH_LANES ? 2 : 1;
    if (panels == 2) {
        unit->offset ? tiles(unit, pixels, 0, channels, 2, 128) : tiles(unit, pixels, 0, channels, 2, 0);
    } else {
        unit->offset ? tiles(unit, pixels, 0, channels, 1, 128) : tiles(unit, pixels, 0, channels, 1, 0);
    }
}

#endif
