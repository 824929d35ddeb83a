/* Integer ops other than convolutions: one pixel of `channels` at a time. */
#include <math.h>

#include "int_requant.h"
#include "kernels.h"

void RH_KERNEL(int_read)(int16_t *output, int32_t stride, const float *input, int32_t count, float scale, int32_t low,
                         int32_t high);
void RH_KERNEL(int_bytes)(uint8_t *output, const int16_t *input, int64_t count, int32_t offset);
void RH_KERNEL(int_norm)(int16_t *output, const int16_t *input, int32_t channels, const rh_requant *requant);
void RH_KERNEL(int_rescale)(int16_t *output, const int16_t *input, int32_t channels, int64_t factor,
                            const rh_requant *requant);
void RH_KERNEL(int_add)(int16_t *output, const int16_t *a, const int16_t *b, int32_t channels,
                        const rh_requant *requant);
void RH_KERNEL(int_mul)(int16_t *output, const int16_t *a, const int16_t *b, int32_t channels,
                        const rh_requant *requant);
void RH_KERNEL(int_table)(int16_t *output, const int16_t *input, int32_t channels, const int16_t *table,
                          int32_t low);
void RH_KERNEL(int_max_pool2d)(int16_t *output, const rh_window *window, int32_t channels);
void RH_KERNEL(int_avg_pool2d)(int16_t *output, const rh_window *window, int32_t channels, int64_t count,
                               const rh_requant *requant);

void RH_KERNEL(int_read)(int16_t *output, int32_t stride, const float *input, int32_t count, float scale, int32_t low,
                         int32_t high) {
    const float least = (float)low, most = (float)high;
    for (int64_t i = 0; i < count; i += RH_LANES) {
        const int32_t lanes = count - i < RH_LANES ? (int32_t)(count - i) : RH_LANES;
        int32_t q[RH_LANES];
#pragma omp simd
        for (int32_t n = 0; n < lanes; n++) {
            const float x = rintf(input[i + n] / scale), above = x >= least ? x : least;
            q[n] = (int32_t)(above <= most ? above : most);
        }
        for (int32_t n = 0; n < lanes; n++) output[(i + n) * stride] = (int16_t)q[n];
    }
}

void RH_KERNEL(int_bytes)(uint8_t *output, const int16_t *input, int64_t count, int32_t offset) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) output[i] = (uint8_t)(input[i] + offset);
}

void RH_KERNEL(int_norm)(int16_t *output, const int16_t *input, int32_t channels, const rh_requant *requant) {
    const rh_requant q = *requant;
    for (int32_t n = 0; n < channels; n++)
        output[n] = (int16_t)rh_requantised((int64_t)input[n] * q.multiplier[n] + q.bias[n], &q);
}

void RH_KERNEL(int_rescale)(int16_t *output, const int16_t *input, int32_t channels, int64_t factor,
                            const rh_requant *requant) {
    const rh_requant q = *requant;
    for (int32_t n = 0; n < channels; n++) output[n] = (int16_t)rh_requantised(factor * input[n], &q);
}

void RH_KERNEL(int_add)(int16_t *output, const int16_t *a, const int16_t *b, int32_t channels,
                        const rh_requant *requant) {
    const rh_requant q = *requant;
    const int64_t f = q.factors[0], g = q.factors[1];
    for (int32_t n = 0; n < channels; n++) output[n] = (int16_t)rh_requantised(f * a[n] + g * b[n], &q);
}

void RH_KERNEL(int_mul)(int16_t *output, const int16_t *a, const int16_t *b, int32_t channels,
                        const rh_requant *requant) {
    const rh_requant q = *requant;
    const int64_t f = q.factors[0];
    for (int32_t n = 0; n < channels; n++) output[n] = (int16_t)rh_requantised(f * ((int32_t)a[n] * b[n]), &q);
}

void RH_KERNEL(int_table)(int16_t *output, const int16_t *input, int32_t channels, const int16_t *table,
                          int32_t low) {
    for (int32_t n = 0; n < channels; n++) output[n] = table[input[n] - low];
}

void RH_KERNEL(int_max_pool2d)(int16_t *output, const rh_window *window, int32_t channels) {
    for (int32_t c = 0; c < channels; c += RH_LANES) {
        int16_t best[RH_LANES];
        for (int32_t n = 0; n < RH_LANES; n++) best[n] = INT16_MIN;
        for (int32_t i = 0; i < window->rows; i++) {
            const int16_t *restrict x = (const int16_t *)window->input + i * window->row_stride + c;
            for (int32_t j = 0; j < window->columns; j++, x += window->pixel_stride) {
#pragma omp simd
                for (int32_t n = 0; n < RH_LANES; n++) best[n] = x[n] > best[n] ? x[n] : best[n];
            }
        }
        for (int32_t n = 0; n < RH_LANES; n++) output[c + n] = best[n];
    }
}

/* floor((2 f sum + count 2^n) / (2 count 2^n)); lanes that nobody reads may wrap around. */
void RH_KERNEL(int_avg_pool2d)(int16_t *output, const rh_window *window, int32_t channels, int64_t count,
                               const rh_requant *requant) {
    const rh_requant q = *requant;
    const int64_t half = count * ((int64_t)1 << q.shift), whole = 2 * half;
    for (int32_t c = 0; c < channels; c += RH_LANES) {
        int64_t sum[RH_LANES] = {0};
        for (int32_t i = 0; i < window->rows; i++) {
            const int16_t *x = (const int16_t *)window->input + i * window->row_stride + c;
            for (int32_t j = 0; j < window->columns; j++, x += window->pixel_stride) {
                for (int32_t n = 0; n < RH_LANES; n++) sum[n] += x[n];
            }
        }
        for (int32_t n = 0; n < RH_LANES; n++) {
            const int64_t t = (int64_t)(2 * (uint64_t)q.factors[0] * (uint64_t)sum[n] + (uint64_t)half);
            const int64_t down = t / whole - (t % whole < 0);
            output[c + n] = (int16_t)rh_clamped(down, q.low, q.high);
        }
    }
}
