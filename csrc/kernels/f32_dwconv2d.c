/* Depthwise convolution: RH_TILE pixels times RH_LANES channels at a time, all taps. */
#include "f32_activation.h"
#include "kernels.h"

enum { RH_TILE = 4 };

#define RH_INLINE static inline __attribute__((always_inline))

RH_INLINE void tile(const rh_dwconv2d_unit *u, const rh_pixels *p, int first, int channel, const int tile,
                    const int lanes) {
    float sum[RH_TILE][RH_LANES];
    const float *x[RH_TILE];
    for (int m = 0; m < tile; m++) {
        x[m] = (const float *)p->input[first + m] + u->offset + channel;
#pragma omp simd
        for (int n = 0; n < lanes; n++) sum[m][n] = 0.0f;
    }
    const float *restrict w = (const float *)u->weight + channel;
    for (int t = 0; t < u->num_taps; t++) {
        const int32_t at = u->taps[t];
#pragma GCC unroll 4
        for (int m = 0; m < tile; m++) {
            const float *restrict xt = x[m] + at;
#pragma omp simd
            for (int n = 0; n < lanes; n++) sum[m][n] += xt[n] * w[n];
        }
        w += u->weight_stride;
    }
    const float *restrict scale = u->after.epilogue.scale + channel;
    const float *restrict shift = u->after.epilogue.shift + channel;
    const int32_t activation = u->after.epilogue.activation;
    const float low = activation == RH_RELU || activation == RH_RELU6 ? 0.0f : -INFINITY;
    const float high = activation == RH_RELU6 ? 6.0f : INFINITY;
    for (int m = 0; m < tile; m++) {
        float *restrict y = (float *)p->output[first + m] + u->offset + channel;
        if (p->has_residual) {
            const float *restrict r = (const float *)p->residual[first + m] + u->offset + channel;
#pragma omp simd
            for (int n = 0; n < lanes; n++)
                y[n] = rh_clamp(sum[m][n] * scale[n] + shift[n] + r[n], low, high);
        } else {
#pragma omp simd
            for (int n = 0; n < lanes; n++) y[n] = rh_clamp(sum[m][n] * scale[n] + shift[n], low, high);
        }
        if (activation > RH_RELU6) rh_activate(y, lanes, activation);
    }
}

void RH_KERNEL(f32_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);

void RH_KERNEL(f32_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels) {
    const int whole = unit->channels / RH_LANES * RH_LANES;
    int m = 0;
    for (; m + RH_TILE <= pixels->count; m += RH_TILE) {
        for (int c = 0; c < whole; c += RH_LANES) tile(unit, pixels, m, c, RH_TILE, RH_LANES);
        if (whole < unit->channels) tile(unit, pixels, m, whole, RH_TILE, unit->channels - whole);
    }
    for (; m < pixels->count; m++) {
        for (int c = 0; c < whole; c += RH_LANES) tile(unit, pixels, m, c, 1, RH_LANES);
        if (whole < unit->channels) tile(unit, pixels, m, whole, 1, unit->channels - whole);
    }
}
