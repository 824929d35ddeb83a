/* Activations as PyTorch defines them, NaN passing through; inlined into the kernels. Branch-free, so that
 * loops vectorise. */
#ifndef RH_F32_ACTIVATION_H
#define RH_F32_ACTIVATION_H

#include <math.h>
#include <stdint.h>

#include "../include/rheostat.h"

typedef union {
    float f;
    uint32_t u;
} rh_bits;

static inline float rh_pow2(int32_t n) {
    rh_bits bits = {.u = (uint32_t)(n + 127) << 23};
    return bits.f;
}

/* exp, relative error below 2e-7: Cody-Waite reduction and the polynomial of Cephes' expf. */
static inline float rh_exp(float x) {
    x = x > 88.8f ? 88.8f : x;
    x = x < -104.0f ? -104.0f : x;
    /* Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
    rh_bits shifted = {.f = x * 1.44269504088896341f + 12582912.0f};
    float n = shifted.f - 12582912.0f;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    /* Two factors, because 2^128 and 2^-150 are no floats; masked, so that NaN cannot overflow the integer.
     */
    int32_t e = (int32_t)(shifted.u & 0x3ff) - ((shifted.u & 0x200) ? 0x400 : 0);
    int32_t half = (e + 1024) / 2 - 512;
    return y * rh_pow2(half) * rh_pow2(e - half);
}

/* tanh, relative error below 4e-7: Cephes' tanhf. */
static inline float rh_tanh(float x) {
    float z = x * x;
    float small = -5.70498872745e-3f;
    small = small * z + 2.06390887954e-2f;
    small = small * z - 5.37397155531e-2f;
    small = small * z + 1.33314422036e-1f;
    small = small * z - 3.33332819422e-1f;
    small = small * z * x + x;
    float large = copysignf(1.0f - 2.0f / (rh_exp(2.0f * fabsf(x)) + 1.0f), x);
    return fabsf(x) < 0.625f ? small : large;
}

static inline float rh_clamp(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

/* v[i] = activation(v[i]); a switch outside of the loops. */
static inline void rh_activate(float *v, int64_t count, int32_t activation) {
    switch (activation) {
        case RH_RELU:
            for (int64_t i = 0; i < count; i++) v[i] = v[i] < 0.0f ? 0.0f : v[i];
            break;
        case RH_RELU6:
            for (int64_t i = 0; i < count; i++) v[i] = rh_clamp(v[i], 0.0f, 6.0f);
            break;
        case RH_HARDSWISH:
            for (int64_t i = 0; i < count; i++) v[i] = v[i] * rh_clamp(v[i] + 3.0f, 0.0f, 6.0f) / 6.0f;
            break;
        case RH_HARDSIGMOID:
            for (int64_t i = 0; i < count; i++) v[i] = rh_clamp(v[i] + 3.0f, 0.0f, 6.0f) / 6.0f;
            break;
        case RH_SIGMOID:
            for (int64_t i = 0; i < count; i++) v[i] = 1.0f / (1.0f + rh_exp(-v[i]));
            break;
        case RH_SILU:
            for (int64_t i = 0; i < count; i++) v[i] = v[i] / (1.0f + rh_exp(-v[i]));
            break;
        case RH_GELU:
            for (int64_t i = 0; i < count; i++)
                v[i] = 0.5f * v[i] * (1.0f + erff(v[i] * 0.70710678118654752f));
            break;
        case RH_GELU_TANH:
            for (int64_t i = 0; i < count; i++) {
                float x = v[i];
                v[i] = 0.5f * x * (1.0f + rh_tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
            }
            break;
        case RH_TANH:
            for (int64_t i = 0; i < count; i++) v[i] = rh_tanh(v[i]);
            break;
        default: break;
    }
}

#endif
