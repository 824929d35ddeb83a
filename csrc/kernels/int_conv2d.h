/* Integer convolution and depthwise convolution over weights of RH_WEIGHT and sums of RH_SUM; included once for each
 * pair. The sums are exact, so that their order means nothing. */
#include "int_requant.h"
#include "kernels.h"

enum { RH_TILE = 4 };

#define RH_INLINE static inline __attribute__((always_inline))

RH_INLINE void finish(const rh_int_pixels *p, int pixel, int at, int channels, const RH_SUM *sum, const rh_requant *q) {
    int16_t *restrict y = p->output[pixel] + at;
    const int16_t *restrict r = p->has_residual ? p->residual[pixel] + at : 0;
    for (int n = 0; n < channels; n++) {
        int64_t t = rh_rounded(sum[n], q->pre) * q->multiplier[n] + q->bias[n];
        if (r != 0) t += q->factors[0] * (int64_t)r[n];
        y[n] = rh_requantised(t, q);
    }
}

RH_INLINE void tile(const rh_int_conv2d_unit *u, const rh_int_pixels *p, int first, int channel, int channels,
                    const int tile) {
    RH_SUM sum[RH_TILE][RH_LANES];
    for (int m = 0; m < tile; m++) {
        for (int n = 0; n < RH_LANES; n++) sum[m][n] = 0;
    }
    const RH_WEIGHT *restrict panel = (const RH_WEIGHT *)u->panel + channel / RH_LANES * u->panel_stride;
    for (int r = 0; r < u->num_runs; r++) {
        const rh_run_of_rows run = u->runs[r];
        const RH_WEIGHT *restrict w = panel + (int64_t)run.row * RH_LANES;
        const int16_t *x[RH_TILE];
        for (int m = 0; m < tile; m++) x[m] = p->input[first + m] + u->input + run.input;
        for (int i = 0; i < run.length; i++) {
#pragma GCC unroll 4
            for (int m = 0; m < tile; m++) {
                const int32_t v = x[m][i];
#pragma omp simd
                for (int n = 0; n < RH_LANES; n++) sum[m][n] += v * (int32_t)w[n];
            }
            w += RH_LANES;
        }
    }
    rh_requant q = u->requant;
    q.multiplier += channel;
    q.bias += channel;
    for (int m = 0; m < tile; m++) finish(p, first + m, u->output + channel, channels, sum[m], &q);
}

void RH_KERNEL(RH_CONV2D_NAME)(const rh_int_conv2d_unit *unit, const rh_int_pixels *pixels);
void RH_KERNEL(RH_DWCONV2D_NAME)(const rh_int_dwconv2d_unit *unit, const rh_int_pixels *pixels);

void RH_KERNEL(RH_CONV2D_NAME)(const rh_int_conv2d_unit *unit, const rh_int_pixels *pixels) {
    for (int channel = 0; channel < unit->channels; channel += RH_LANES) {
        const int rest = unit->channels - channel, channels = rest < RH_LANES ? rest : RH_LANES;
        int m = 0;
        for (; m + RH_TILE <= pixels->count; m += RH_TILE) tile(unit, pixels, m, channel, channels, RH_TILE);
        for (; m < pixels->count; m++) tile(unit, pixels, m, channel, channels, 1);
    }
}

void RH_KERNEL(RH_DWCONV2D_NAME)(const rh_int_dwconv2d_unit *unit, const rh_int_pixels *pixels) {
    for (int channel = 0; channel < unit->channels; channel += RH_LANES) {
        const int rest = unit->channels - channel, channels = rest < RH_LANES ? rest : RH_LANES;
        const RH_WEIGHT *restrict weight = (const RH_WEIGHT *)unit->weight + channel;
        const int at = unit->offset + channel;
        rh_requant q = unit->requant;
        q.multiplier += channel;
        q.bias += channel;
        for (int m = 0; m < pixels->count; m++) {
            RH_SUM sum[RH_LANES] = {0};
            for (int t = 0; t < unit->num_taps; t++) {
                const int16_t *restrict x = pixels->input[m] + at + unit->taps[t];
                const RH_WEIGHT *restrict w = weight + t * unit->weight_stride;
#pragma omp simd
                for (int n = 0; n < channels; n++) sum[n] += (int32_t)x[n] * (int32_t)w[n];
            }
            finish(pixels, m, at, channels, sum, &q);
        }
    }
}
