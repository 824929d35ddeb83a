/* Floats of 32 bits. No function of libm is called. */
#ifndef RH_FLOAT_H
#define RH_FLOAT_H

typedef float rh_element;
typedef float rh_weight;
typedef float rh_product;
typedef float rh_sum;
typedef float rh_number;
typedef float rh_total;

/* What follows a sum: y = activation(sum * scale + shift + residual); without scale or shift where they are 0. */
typedef struct {
    const float *scale;
    const float *shift;
    uint8_t activation;
} rh_epilogue;

/* The order of rheostat.program.ACTIVATIONS. */
enum {
    RH_NONE, RH_RELU, RH_RELU6, RH_HARDSWISH, RH_HARDSIGMOID, RH_SIGMOID, RH_SILU, RH_GELU, RH_GELU_TANH, RH_TANH
};

static inline rh_number rh_get(rh_element x, uint8_t flip) {
    (void)flip;
    return x;
}

typedef union {
    float f;
    uint32_t u;
} rh_bits;

static inline float rh_pow2(int32_t n) {
    rh_bits bits;
    bits.u = (uint32_t)(n + 127) << 23;
    return bits.f;
}

/* exp, relative error below 2e-7: Cody-Waite reduction and the polynomial of Cephes' expf. */
static inline float rh_exp(float x) {
    if (x != x) return x;
    x = x > 88.8f ? 88.8f : x < -104.0f ? -104.0f : x;
    const int32_t e = (int32_t)(x * 1.44269504088896341f + (x < 0.0f ? -0.5f : 0.5f)), half = e / 2;
    const float n = (float)e, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    /* Two factors, because 2^128 and 2^-150 are no floats. */
    return y * rh_pow2(half) * rh_pow2(e - half);
}

/* tanh, relative error below 4e-7: Cephes' tanhf. */
static inline float rh_tanh(float x) {
    const float size = x < 0.0f ? -x : x, z = x * x;
    if (size < 0.625f) {
        float y = -5.70498872745e-3f;
        y = y * z + 2.06390887954e-2f;
        y = y * z - 5.37397155531e-2f;
        y = y * z + 1.33314422036e-1f;
        y = y * z - 3.33332819422e-1f;
        return y * z * x + x;
    }
    const float y = 1.0f - 2.0f / (rh_exp(2.0f * size) + 1.0f);
    return x < 0.0f ? -y : y;
}

/* 1 + erf(x / sqrt(2)), absolute error below 3e-7: Abramowitz and Stegun, 7.1.26. */
static inline float rh_one_plus_erf(float x) {
    const float z = (x < 0.0f ? -x : x) * 0.70710678118654752f, t = 1.0f / (1.0f + 0.3275911f * z);
    float y = 1.061405429f;
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = (y * t + 0.254829592f) * t * rh_exp(-z * z);
    return x < 0.0f ? y : 2.0f - y;
}

static inline float rh_between(float x, float high) { return x < 0.0f ? 0.0f : x > high ? high : x; }

/* As PyTorch defines them, NaN passing through. */
static inline float rh_activated(float x, uint8_t activation) {
    switch (activation) {
        case RH_RELU: return x < 0.0f ? 0.0f : x;
        case RH_RELU6: return rh_between(x, 6.0f);
        case RH_HARDSWISH: return x * rh_between(x + 3.0f, 6.0f) / 6.0f;
        case RH_HARDSIGMOID: return rh_between(x + 3.0f, 6.0f) / 6.0f;
        case RH_SIGMOID: return 1.0f / (1.0f + rh_exp(-x));
        case RH_SILU: return x / (1.0f + rh_exp(-x));
        case RH_GELU: return 0.5f * x * rh_one_plus_erf(x);
        case RH_GELU_TANH:
            return 0.5f * x * (1.0f + rh_tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case RH_TANH: return rh_tanh(x);
        default: return x;
    }
}

static inline rh_element rh_finished(rh_sum sum, size_t channel, const rh_element *residual, uint8_t flip,
                                     const rh_epilogue *e) {
    (void)flip;
    if (e->scale != 0) sum *= e->scale[channel];
    if (e->shift != 0) sum += e->shift[channel];
    if (residual != 0) sum += *residual;
    return rh_activated(sum, e->activation);
}

static inline rh_element rh_point(rh_kind kind, rh_number a, rh_number b, size_t channel, uint8_t flip,
                                  const rh_epilogue *e) {
    switch (kind) {
        case RH_NORM: return rh_finished(a, channel, 0, flip, e);
        case RH_ADD: return rh_activated(a + b, e->activation);
        case RH_MUL: return rh_activated(a * b, e->activation);
        default: return rh_activated(a, e->activation);
    }
}

/* A NaN enters (x != x) and stays (nothing is greater). */
static inline rh_number rh_larger(rh_number best, rh_number x) { return x > best || x != x ? x : best; }

static inline rh_element rh_mean(rh_total total, int32_t count, const rh_epilogue *e) {
    (void)e;
    return total / (float)count;
}

#endif
