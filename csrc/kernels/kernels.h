/* The kernels: plain loops over packed weights and NHWC activations, compiled once per instruction set.
 *
 * A name is type_op; the object files add __isa (f32_conv2d__avx512). Channel strides and channel counts are
 * multiples of RH_LANES unless a comment says otherwise, so that no kernel needs a mask.
 */
#ifndef RH_KERNELS_H
#define RH_KERNELS_H

#include <stdint.h>

enum {
    RH_LANES = 16,          /* output channels of a panel: one AVX-512 register, half a cache line pair */
    RH_UNIT = 2 * RH_LANES, /* output channels a convolution makes at a time: up to two panels */
    RH_BLOCK = 48,          /* pixels handed over at a time: a multiple of every tile height */
};

/* `length` floats consecutive in the input, from `input` after the pixel's first tap, and their rows in a
 * panel. */
typedef struct {
    int32_t input;
    int32_t row;
    int32_t length;
} rh_run_of_rows;

/* What follows the sums: y = activation(x * scale + shift + residual). The arrays start at the first channel
 * in hand. */
typedef struct {
    const float *scale;
    const float *shift;
    int32_t activation;
} rh_epilogue;

/* Up to RH_BLOCK output pixels: where each one's first tap, output and residual start; float, or int16_t in integer
 * models, whose inputs u8_conv2d wants as uint8_t. */
typedef struct {
    const void *input[RH_BLOCK];
    void *output[RH_BLOCK];
    const void *residual[RH_BLOCK];
    int32_t count;
    int32_t has_residual;
} rh_pixels;

/* What follows integer sums (docs/quant.md). The arrays start at the first channel in hand; those that an op does not
 * have are NULL. `factors` has one number for each input that is rescaled. */
typedef struct {
    const int32_t *multiplier;
    const int64_t *bias;
    const int64_t *factors;
    int32_t pre;
    int32_t shift;
    int32_t low;
    int32_t high;
} rh_requant;

/* 1 to RH_UNIT output channels at `pixels`, offset by `input` and `output` channels. Writes exactly `channels`
 * numbers. */
typedef struct {
    const rh_run_of_rows *runs;
    int32_t num_runs;
    int32_t channels;
    int32_t input;
    int32_t output;
    const void *panel; /* float; integers: as the kernel is called */
    int64_t panel_stride;
    int32_t lone;         /* floats: each sample has one pixel, a linear layer */
    const int32_t *start; /* u8_conv2d: what the sums start at, whole panels */
    union {
        rh_epilogue epilogue;
        rh_requant requant;
    } after;
} rh_conv2d_unit;

/* Depthwise: `channels` (any count) channels at `pixels`; weight [tap][weight_stride]. Writes exactly `channels`
 * numbers. */
typedef struct {
    const int32_t *taps; /* where each tap lies from the pixel's first, in numbers */
    int32_t num_taps;
    int32_t channels;
    int32_t offset; /* first channel, on both sides */
    const void *weight;
    int64_t weight_stride;
    union {
        rh_epilogue epilogue;
        rh_requant requant;
    } after;
} rh_dwconv2d_unit;

/* A pooling window that lies inside the input: float, or int16_t in integer models. */
typedef struct {
    const void *input;
    int64_t row_stride;
    int32_t pixel_stride;
    int32_t rows;
    int32_t columns;
} rh_window;

typedef struct {
    const char *isa;
    void (*f32_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
    void (*f32_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);
    void (*f32_max_pool2d)(float *output, const rh_window *window, int32_t channels);
    void (*f32_avg_pool2d)(float *output, const rh_window *window, int32_t channels, float divisor);
    /* `count` pixels of `channels`, as far apart as `channels` on both sides. */
    void (*f32_scale)(float *output, const float *input, int64_t count, int32_t channels,
                      const rh_epilogue *epilogue);
    void (*f32_activation)(float *output, const float *input, int64_t count, int32_t activation);
    void (*f32_add)(float *output, const float *a, const float *b, int64_t count, int32_t activation);
    void (*f32_mul)(float *output, const float *a, const float *b, int64_t count, int32_t activation);
    /* One `b` of `channels` for all the pixels. */
    void (*f32_mul_pixel)(float *output, const float *a, const float *b, int64_t count, int32_t channels,
                          int32_t activation);
    /* `channels` may be any count. */
    void (*f32_softmax)(float *output, const float *input, int32_t channels);
    /* to[i] = from[i] where levels[i] <= level, else 0 */
    void (*f32_mask)(float *to, const float *from, const uint8_t *levels, int64_t count, int32_t level);
    void (*i8_mask)(int8_t *to, const int8_t *from, const uint8_t *levels, int64_t count, int32_t level);
    void (*i16_mask)(int16_t *to, const int16_t *from, const uint8_t *levels, int64_t count, int32_t level);
    /* Integers: activations of 16 bits, one pixel of any count of channels, unless a name or a comment says otherwise. */
    void (*i8_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
    void (*i16_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
    void (*u8_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels); /* inputs are uint8_t; may be NULL */
    void (*i8_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);
    void (*i16_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);
    /* q = x / scale, rounded half to even and clamped; NaN becomes `low`. `count` numbers, `stride` apart. */
    void (*int_read)(int16_t *output, int32_t stride, const float *input, int32_t count, float scale, int32_t low,
                     int32_t high);
    void (*int_bytes)(uint8_t *output, const int16_t *input, int64_t count, int32_t offset); /* x + offset */
    void (*int_norm)(int16_t *output, const int16_t *input, int32_t channels, const rh_requant *requant);
    void (*int_rescale)(int16_t *output, const int16_t *input, int32_t channels, int64_t factor,
                        const rh_requant *requant);
    void (*int_add)(int16_t *output, const int16_t *a, const int16_t *b, int32_t channels, const rh_requant *requant);
    void (*int_mul)(int16_t *output, const int16_t *a, const int16_t *b, int32_t channels, const rh_requant *requant);
    /* table[x - low] */
    void (*int_table)(int16_t *output, const int16_t *input, int32_t channels, const int16_t *table, int32_t low);
    /* `channels` is a multiple of RH_LANES, as in all pools. */
    void (*int_max_pool2d)(int16_t *output, const rh_window *window, int32_t channels);
    /* `count` positions count in the mean, those of the padding included. */
    void (*int_avg_pool2d)(int16_t *output, const rh_window *window, int32_t channels, int64_t count,
                           const rh_requant *requant);
} rh_kernels;

/* The best kernels that this processor runs and, where set, that RHEOSTAT_ISA names. */
const rh_kernels *rh_kernels_choose(void);

#define RH_JOIN_(name, isa) name##__##isa
#define RH_JOIN(name, isa) RH_JOIN_(name, isa)
#define RH_KERNEL(name) RH_JOIN(name, RH_ISA)

#endif
