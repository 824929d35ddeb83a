/* Integer convolution and depthwise convolution over weights of RH_WEIGHT and sums of RH_SUM; included once for each
 * pair. The sums are exact, so that their order means nothing.
 *
 * A panel of a convolution holds its rows in pairs: [row / 2][RH_LANES][row % 2].
 */
#include "int_finish.h"
#include "int_pairs.h"

enum { RH_DEPTHWISE_TILE = 4 };
/* Pixels times panels whose sums the registers hold. */
#if defined(__AVX512BW__)
enum { RH_TILE = 48 / sizeof(RH_SUM), RH_PANELS = 2 };
#elif defined(__AVX2__)
enum { RH_TILE = 24 / sizeof(RH_SUM), RH_PANELS = 1 };
#elif defined(__aarch64__)
enum { RH_TILE = 16 / sizeof(RH_SUM), RH_PANELS = 1 };
#else
enum { RH_TILE = 2, RH_PANELS = 1 };
#endif

#define RH_SUMS RH_PASTE(rh_sums_, RH_SUM)
#define RH_LOAD RH_PASTE(rh_load_, RH_WEIGHT)
#define RH_WIDEN RH_PASTE(rh_widen_, RH_WEIGHT)
#define RH_ADD RH_PASTE(rh_add_, RH_SUM)
#define RH_DOTS RH_PASTE(rh_dots_, RH_SUM)
#define RH_DOT RH_PASTE(rh_dot_, RH_SUM)
#define RH_COLLECT RH_PASTE(rh_collect_, RH_SUM)
#define RH_ROWS RH_PASTE(RH_ROWS_, RH_SUM)
#define RH_MANY (RH_ROWS < INT32_MAX) /* the dots may have to be collected more than once */
#define RH_PASTE(a, b) RH_PASTE_(a, b)
#define RH_PASTE_(a, b) a##b

/* A pair of rows for all pixels of a tile: x[m][i] and its neighbour. At the ends of a run one may be missing. */
enum { BOTH, ONLY_FIRST, ONLY_SECOND };

RH_INLINE void pair(RH_DOTS (*restrict dots)[RH_PANELS * RH_VECTORS], const int16_t *const *x, int i,
                    const RH_WEIGHT *w, int64_t panel_stride, const int which, const int tile, const int panels) {
    rh_pairs weights[RH_PANELS * RH_VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < panels * RH_VECTORS; v++)
        weights[v] = RH_LOAD(w + v / RH_VECTORS * panel_stride + v % RH_VECTORS * 2 * RH_WIDE);
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
        const rh_pairs xs = which == BOTH ? rh_both(x[m] + i) : rh_lone(x[m] + i, which == ONLY_FIRST);
#pragma GCC unroll 8
        for (int v = 0; v < panels * RH_VECTORS; v++) RH_DOT(&dots[m][v], xs, weights[v]);
    }
}

/* Moves into the sums what the dots hold. */
RH_INLINE void collect(RH_SUM (*restrict sums)[RH_PANELS * RH_LANES], RH_DOTS (*restrict dots)[RH_PANELS * RH_VECTORS],
                       const int tile, const int panels) {
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
#pragma GCC unroll 8
        for (int v = 0; v < panels * RH_VECTORS; v++) {
            RH_COLLECT(sums[m] + v * RH_WIDE, &dots[m][v]);
            dots[m][v] = (RH_DOTS){0};
        }
    }
}

RH_INLINE void tile(const rh_conv2d_unit *u, const rh_pixels *p, int first, int channel, int channels,
                    const int tile, const int panels) {
    RH_DOTS dots[RH_TILE][RH_PANELS * RH_VECTORS];
    RH_SUM sums[RH_TILE][RH_PANELS * RH_LANES];
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
#pragma GCC unroll 8
        for (int v = 0; v < panels * RH_VECTORS; v++) dots[m][v] = (RH_DOTS){0};
        for (int n = 0; RH_MANY && n < panels * RH_LANES; n++) sums[m][n] = 0;
    }
    const RH_WEIGHT *panel = (const RH_WEIGHT *)u->panel + channel / RH_LANES * u->panel_stride;
    int room = RH_ROWS;
    for (int r = 0; r < u->num_runs; r++) {
        const rh_run_of_rows run = u->runs[r];
        const int16_t *x[RH_TILE];
#pragma GCC unroll 16
        for (int m = 0; m < tile; m++) x[m] = (const int16_t *)p->input[first + m] + u->input + run.input;
        for (int i = 0, stop; i < run.length; i = stop) {
            if (RH_MANY && room == 0) {
                collect(sums, dots, tile, panels);
                room = RH_ROWS;
            }
            stop = run.length - i < room ? run.length : i + room;
            room -= stop - i;
            const RH_WEIGHT *w = panel + (run.row + i) / 2 * (int64_t)(2 * RH_LANES);
            if ((run.row + i) % 2 == 1) {
                pair(dots, x, i, w, u->panel_stride, ONLY_SECOND, tile, panels);
                i++;
                w += 2 * RH_LANES;
            }
            for (; i + 2 <= stop; i += 2, w += 2 * RH_LANES)
                pair(dots, x, i, w, u->panel_stride, BOTH, tile, panels);
            if (i < stop) pair(dots, x, i, w, u->panel_stride, ONLY_FIRST, tile, panels);
        }
    }
    collect(sums, dots, tile, panels);
    for (int b = 0; b < panels; b++) {
        for (int m = 0; m < tile; m++)
            finish(p, first + m, u->output, channel + b * RH_LANES, channels - b * RH_LANES, sums[m] + b * RH_LANES,
                   &u->after.requant);
    }
}

RH_INLINE void tiles(const rh_conv2d_unit *u, const rh_pixels *p, int channel, int channels, const int panels) {
    int m = 0;
    for (; m + RH_TILE <= p->count; m += RH_TILE) tile(u, p, m, channel, channels, RH_TILE, panels);
    if (RH_TILE > 4 && m + 4 <= p->count) {
        tile(u, p, m, channel, channels, RH_TILE > 4 ? 4 : 1, panels);
        m += 4;
    }
    for (; m < p->count; m++) tile(u, p, m, channel, channels, 1, panels);
}

void RH_KERNEL(RH_CONV2D_NAME)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(RH_DWCONV2D_NAME)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);

void RH_KERNEL(RH_CONV2D_NAME)(const rh_conv2d_unit *unit, const rh_pixels *pixels) {
    for (int channel = 0; channel < unit->channels; channel += RH_PANELS * RH_LANES) {
        const int rest = unit->channels - channel;
        if (RH_PANELS == 2 && rest > RH_LANES) {
            tiles(unit, pixels, channel, rest, RH_PANELS);
        } else {
            tiles(unit, pixels, channel, rest < RH_LANES ? rest : RH_LANES, 1);
        }
    }
}

/* Depthwise: `tile` pixels times RH_LANES channels, all taps. */
RH_INLINE void depthwise(const rh_dwconv2d_unit *u, const rh_pixels *p, int first, int channel, const int tile) {
    RH_SUMS sums[RH_DEPTHWISE_TILE][RH_VECTORS];
    const int16_t *x[RH_DEPTHWISE_TILE];
#pragma GCC unroll 4
    for (int m = 0; m < tile; m++) {
        x[m] = (const int16_t *)p->input[first + m] + u->offset + channel;
#pragma GCC unroll 4
        for (int v = 0; v < RH_VECTORS; v++) sums[m][v] = (RH_SUMS){0};
    }
    const RH_WEIGHT *w = (const RH_WEIGHT *)u->weight + channel;
    for (int t = 0; t < u->num_taps; t++, w += u->weight_stride) {
#pragma GCC unroll 4
        for (int v = 0; v < RH_VECTORS; v++) {
            const rh_words weights = RH_WIDEN(w + v * RH_WIDE);
#pragma GCC unroll 4
            for (int m = 0; m < tile; m++)
                RH_ADD(&sums[m][v], rh_widen_int16_t(x[m] + u->taps[t] + v * RH_WIDE) * weights);
        }
    }
    for (int m = 0; m < tile; m++) {
        RH_SUM sum[RH_LANES];
        memcpy(sum, sums[m], sizeof sum);
        finish(p, first + m, u->offset, channel, RH_LANES, sum, &u->after.requant);
    }
}

/* The same for the last channels of one pixel, fewer than RH_LANES. */
RH_INLINE void depthwise_rest(const rh_dwconv2d_unit *u, const rh_pixels *p, int pixel, int channel) {
    RH_SUM sum[RH_LANES] = {0};
    const int16_t *x = (const int16_t *)p->input[pixel] + u->offset + channel;
    const RH_WEIGHT *w = (const RH_WEIGHT *)u->weight + channel;
    for (int t = 0; t < u->num_taps; t++, w += u->weight_stride) {
        for (int n = 0; n < u->channels - channel; n++) sum[n] += x[u->taps[t] + n] * (int32_t)w[n];
    }
    finish(p, pixel, u->offset, channel, u->channels - channel, sum, &u->after.requant);
}

void RH_KERNEL(RH_DWCONV2D_NAME)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels) {
    const int whole = unit->channels / RH_LANES * RH_LANES;
    int m = 0;
    for (; m + RH_DEPTHWISE_TILE <= pixels->count; m += RH_DEPTHWISE_TILE) {
        for (int c = 0; c < whole; c += RH_LANES) depthwise(unit, pixels, m, c, RH_DEPTHWISE_TILE);
    }
    for (; m < pixels->count; m++) {
        for (int c = 0; c < whole; c += RH_LANES) depthwise(unit, pixels, m, c, 1);
    }
    for (m = 0; whole < unit->channels && m < pixels->count; m++) depthwise_rest(unit, pixels, m, whole);
}
