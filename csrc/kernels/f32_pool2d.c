/* Pooling over one window at a time, RH_LANES channels in registers. */
#include <math.h>

#include "kernels.h"

void RH_KERNEL(f32_max_pool2d)(float *output, const rh_window *window, int32_t channels);
void RH_KERNEL(f32_avg_pool2d)(float *output, const rh_window *window, int32_t channels, float divisor);

void RH_KERNEL(f32_max_pool2d)(float *output, const rh_window *window, int32_t channels) {
    for (int32_t c = 0; c < channels; c += RH_LANES) {
        float best[RH_LANES];
        for (int n = 0; n < RH_LANES; n++) best[n] = -INFINITY;
        for (int32_t i = 0; i < window->rows; i++) {
            const float *restrict x = (const float *)window->input + i * window->row_stride + c;
            for (int32_t j = 0; j < window->columns; j++) {
                /* A NaN enters (x != x) and stays (nothing is greater). */
#pragma omp simd
                for (int n = 0; n < RH_LANES; n++)
                    best[n] = (x[n] > best[n]) | (x[n] != x[n]) ? x[n] : best[n];
                x += window->pixel_stride;
            }
        }
        for (int n = 0; n < RH_LANES; n++) output[c + n] = best[n];
    }
}

/* Sums of sums over the rows: the rounding error grows with H + W, not with H * W. */
void RH_KERNEL(f32_avg_pool2d)(float *output, const rh_window *window, int32_t channels, float divisor) {
    for (int32_t c = 0; c < channels; c += RH_LANES) {
        float sum[RH_LANES] = {0};
        for (int32_t i = 0; i < window->rows; i++) {
            const float *restrict x = (const float *)window->input + i * window->row_stride + c;
            float row[RH_LANES] = {0};
            for (int32_t j = 0; j < window->columns; j++) {
#pragma omp simd
                for (int n = 0; n < RH_LANES; n++) row[n] += x[n];
                x += window->pixel_stride;
            }
            for (int n = 0; n < RH_LANES; n++) sum[n] += row[n];
        }
        for (int n = 0; n < RH_LANES; n++) output[c + n] = sum[n] / divisor;
    }
}
