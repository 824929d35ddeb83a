/* Convolution as an implicit matrix product: tiles of RH_TILE pixels times RH_PANELS panels, sums in
 * registers.
 *
 * The loops have constant trip counts, so that the compiler unrolls the pixels, vectorises the channels and
 * keeps `sum` in registers. RH_TILE and RH_PANELS are what the register file of the instruction set holds.
 */
#include "f32_activation.h"
#include "kernels.h"

#if defined(__AVX512F__)
enum { RH_TILE = 12, RH_PANELS = 2 };
#elif defined(__AVX2__)
enum { RH_TILE = 6, RH_PANELS = 1 };
#elif defined(__aarch64__)
enum { RH_TILE = 4, RH_PANELS = 1 };
#else
enum { RH_TILE = 2, RH_PANELS = 1 };
#endif

#define RH_INLINE static inline __attribute__((always_inline))

/* The last steps for `tile` pixels whose sums are in `sum`. */
RH_INLINE void finish(const rh_conv2d_unit *u, const rh_pixels *p, int first, int channel, int channels,
                      float (*restrict sum)[RH_PANELS * RH_LANES], const int tile, const int lanes) {
    const float *restrict scale = u->after.epilogue.scale + channel;
    const float *restrict shift = u->after.epilogue.shift + channel;
    const int32_t activation = u->after.epilogue.activation;
    const float low = activation == RH_RELU || activation == RH_RELU6 ? 0.0f : -INFINITY;
    const float high = activation == RH_RELU6 ? 6.0f : INFINITY;
    const int at = u->output + channel;
    if (channels != lanes) {
        for (int m = 0; m < tile; m++) {
            float *y = (float *)p->output[first + m] + at;
            for (int n = 0; n < channels; n++) {
                float v = sum[m][n] * scale[n] + shift[n];
                if (p->has_residual) v += ((const float *)p->residual[first + m])[at + n];
                y[n] = rh_clamp(v, low, high);
            }
        }
    } else if (p->has_residual) {
        for (int m = 0; m < tile; m++) {
            float *restrict y = (float *)p->output[first + m] + at;
            const float *restrict r = (const float *)p->residual[first + m] + at;
#pragma omp simd
            for (int n = 0; n < lanes; n++)
                y[n] = rh_clamp(sum[m][n] * scale[n] + shift[n] + r[n], low, high);
        }
    } else {
        for (int m = 0; m < tile; m++) {
            float *restrict y = (float *)p->output[first + m] + at;
#pragma omp simd
            for (int n = 0; n < lanes; n++) y[n] = rh_clamp(sum[m][n] * scale[n] + shift[n], low, high);
        }
    }
    if (activation > RH_RELU6) {
        for (int m = 0; m < tile; m++) rh_activate((float *)p->output[first + m] + at, channels, activation);
    }
}

RH_INLINE void tile(const rh_conv2d_unit *u, const rh_pixels *p, int first, int channel, int channels,
                    const int tile, const int panels) {
    const int lanes = panels * RH_LANES;
    float sum[RH_TILE][RH_PANELS * RH_LANES];
#pragma GCC unroll 16
    for (int m = 0; m < tile; m++) {
#pragma omp simd
        for (int n = 0; n < lanes; n++) sum[m][n] = 0.0f;
    }
    const float *restrict panel = (const float *)u->panel + channel / RH_LANES * u->panel_stride;
    for (int r = 0; r < u->num_runs; r++) {
        const rh_run_of_rows run = u->runs[r];
        const float *restrict w = panel + (int64_t)run.row * RH_LANES;
        const float *x[RH_TILE];
#pragma GCC unroll 16
        for (int m = 0; m < tile; m++) x[m] = (const float *)p->input[first + m] + u->input + run.input;
        for (int i = 0; i < run.length; i++) {
#pragma GCC unroll 16
            for (int m = 0; m < tile; m++) {
                const float v = x[m][i];
#pragma omp simd
                for (int n = 0; n < RH_LANES; n++) sum[m][n] += v * w[n];
                if (panels == 2) {
                    const float *restrict w2 = w + u->panel_stride;
#pragma omp simd
                    for (int n = 0; n < RH_LANES; n++) sum[m][RH_LANES + n] += v * w2[n];
                }
            }
            w += RH_LANES;
        }
    }
    finish(u, p, first, channel, channels, sum, tile, lanes);
}

/* A lone pixel: four rows at a time into sums of their own, so that no addition waits for another. */
RH_INLINE void pixel(const rh_conv2d_unit *u, const rh_pixels *p, int first, int channel, int channels,
                     const int panels) {
    enum { STEP = 4 };
    const int lanes = panels * RH_LANES;
    float part[STEP][RH_PANELS * RH_LANES];
    for (int s = 0; s < STEP; s++) {
#pragma omp simd
        for (int n = 0; n < lanes; n++) part[s][n] = 0.0f;
    }
    const float *restrict panel = (const float *)u->panel + channel / RH_LANES * u->panel_stride;
    for (int r = 0; r < u->num_runs; r++) {
        const rh_run_of_rows run = u->runs[r];
        const float *restrict w = panel + (int64_t)run.row * RH_LANES;
        const float *restrict x = (const float *)p->input[first] + u->input + run.input;
        int i = 0;
        for (; i + STEP <= run.length; i += STEP) {
#pragma GCC unroll 4
            for (int s = 0; s < STEP; s++) {
#pragma omp simd
                for (int n = 0; n < RH_LANES; n++) part[s][n] += x[i + s] * w[s * RH_LANES + n];
                if (panels == 2) {
                    const float *restrict w2 = w + u->panel_stride;
#pragma omp simd
                    for (int n = 0; n < RH_LANES; n++)
                        part[s][RH_LANES + n] += x[i + s] * w2[s * RH_LANES + n];
                }
            }
            w += STEP * RH_LANES;
        }
        for (; i < run.length; i++) {
#pragma omp simd
            for (int n = 0; n < RH_LANES; n++) part[0][n] += x[i] * w[n];
            if (panels == 2) {
                const float *restrict w2 = w + u->panel_stride;
#pragma omp simd
                for (int n = 0; n < RH_LANES; n++) part[0][RH_LANES + n] += x[i] * w2[n];
            }
            w += RH_LANES;
        }
    }
    float sum[1][RH_PANELS * RH_LANES];
#pragma omp simd
    for (int n = 0; n < lanes; n++) sum[0][n] = (part[0][n] + part[1][n]) + (part[2][n] + part[3][n]);
    finish(u, p, first, channel, channels, sum, 1, lanes);
}

/* A pixel's sum is made in the same order wherever it falls, so that neither batch nor threads change a bit.
 */
RH_INLINE void tiles(const rh_conv2d_unit *u, const rh_pixels *p, int channel, int channels,
                     const int panels) {
    int m = 0;
    if (u->lone) {
        for (; m < p->count; m++) pixel(u, p, m, channel, channels, panels);
    }
    for (; m + RH_TILE <= p->count; m += RH_TILE) tile(u, p, m, channel, channels, RH_TILE, panels);
#if defined(__AVX512F__)
    if (m + 8 <= p->count) {
        tile(u, p, m, channel, channels, 8, panels);
        m += 8;
    }
#endif
#if defined(__AVX2__)
    if (m + 4 <= p->count) {
        tile(u, p, m, channel, channels, 4, panels);
        m += 4;
    }
#endif
    if (m + 2 <= p->count) {
        tile(u, p, m, channel, channels, 2, panels);
        m += 2;
    }
    if (m < p->count) tile(u, p, m, channel, channels, 1, panels);
}

void RH_KERNEL(f32_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);

void RH_KERNEL(f32_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels) {
    for (int channel = 0; channel < unit->channels; channel += RH_PANELS * RH_LANES) {
        const int rest = unit->channels - channel;
        if (RH_PANELS == 2 && rest > RH_LANES) {
            tiles(unit, pixels, channel, rest, RH_PANELS);
        } else {
            tiles(unit, pixels, channel, rest < RH_LANES ? rest : RH_LANES, 1);
        }
    }
}
