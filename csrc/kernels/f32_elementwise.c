/* Elementwise kernels and softmax. */
#include <math.h>

#include "f32_activation.h"
#include "kernels.h"

void RH_KERNEL(f32_scale)(float *output, const float *input, int64_t count, int32_t channels,
                          const rh_epilogue *epilogue);
void RH_KERNEL(f32_activation)(float *output, const float *input, int64_t count, int32_t activation);
void RH_KERNEL(f32_add)(float *output, const float *a, const float *b, int64_t count, int32_t activation);
void RH_KERNEL(f32_mul)(float *output, const float *a, const float *b, int64_t count, int32_t activation);
void RH_KERNEL(f32_mul_pixel)(float *output, const float *a, const float *b, int64_t count, int32_t channels,
                              int32_t activation);
void RH_KERNEL(f32_softmax)(float *output, const float *input, int32_t channels);

void RH_KERNEL(f32_scale)(float *output, const float *input, int64_t count, int32_t channels,
                          const rh_epilogue *epilogue) {
    const float *restrict scale = epilogue->scale, *restrict shift = epilogue->shift;
    for (int64_t p = 0; p < count; p++) {
        float *restrict y = output + p * channels;
        const float *restrict x = input + p * channels;
        for (int32_t n = 0; n < channels; n++) y[n] = x[n] * scale[n] + shift[n];
        rh_activate(y, channels, epilogue->activation);
    }
}

/* In pieces, so that the second pass finds the first one's results in the nearest cache. */
enum { RH_PIECE = 1024 };

#define RH_IN_PIECES(expression)                                         \
    for (int64_t i = 0; i < count; i += RH_PIECE) {                      \
        const int64_t end = count - i < RH_PIECE ? count : i + RH_PIECE; \
        for (int64_t n = i; n < end; n++) y[n] = (expression);           \
        rh_activate(y + i, end - i, activation);                         \
    }

void RH_KERNEL(f32_activation)(float *output, const float *input, int64_t count, int32_t activation) {
    float *restrict y = output;
    const float *restrict x = input;
    RH_IN_PIECES(x[n])
}

/* `a` and `b` may be the same tensor; the output is neither. */
void RH_KERNEL(f32_add)(float *output, const float *a, const float *b, int64_t count, int32_t activation) {
    float *restrict y = output;
    RH_IN_PIECES(a[n] + b[n])
}

void RH_KERNEL(f32_mul)(float *output, const float *a, const float *b, int64_t count, int32_t activation) {
    float *restrict y = output;
    RH_IN_PIECES(a[n] * b[n])
}

void RH_KERNEL(f32_mul_pixel)(float *output, const float *a, const float *b, int64_t count, int32_t channels,
                              int32_t activation) {
    for (int64_t p = 0; p < count; p++) {
        float *restrict y = output + p * channels;
        const float *x = a + p * channels;
        for (int32_t n = 0; n < channels; n++) y[n] = x[n] * b[n];
        rh_activate(y, channels, activation);
    }
}

void RH_KERNEL(f32_softmax)(float *output, const float *input, int32_t channels) {
    float *restrict y = output;
    const float *restrict x = input;
    float best = -INFINITY, sum = 0.0f;
    for (int32_t n = 0; n < channels; n++) best = x[n] > best ? x[n] : best;
    for (int32_t n = 0; n < channels; n++) y[n] = rh_exp(x[n] - best);
    for (int32_t n = 0; n < channels; n++) sum += y[n];
    for (int32_t n = 0; n < channels; n++) y[n] /= sum;
}
