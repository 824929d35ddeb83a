/* The kernels of one instruction set as a table. */
#include "kernels.h"

void RH_KERNEL(f32_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(f32_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(f32_max_pool2d)(float *output, const rh_window *window, int32_t channels);
void RH_KERNEL(f32_avg_pool2d)(float *output, const rh_window *window, int32_t channels, float divisor);
void RH_KERNEL(f32_scale)(float *output, const float *input, int64_t count, int32_t channels,
                          const rh_epilogue *epilogue);
void RH_KERNEL(f32_activation)(float *output, const float *input, int64_t count, int32_t activation);
void RH_KERNEL(f32_add)(float *output, const float *a, const float *b, int64_t count, int32_t activation);
void RH_KERNEL(f32_mul)(float *output, const float *a, const float *b, int64_t count, int32_t activation);
void RH_KERNEL(f32_mul_pixel)(float *output, const float *a, const float *b, int64_t count, int32_t channels,
                              int32_t activation);
void RH_KERNEL(f32_softmax)(float *output, const float *input, int32_t channels);
void RH_KERNEL(f32_mask)(float *to, const float *from, const uint8_t *levels, int64_t count, int32_t level);
void RH_KERNEL(i8_mask)(int8_t *to, const int8_t *from, const uint8_t *levels, int64_t count, int32_t level);
void RH_KERNEL(i16_mask)(int16_t *to, const int16_t *from, const uint8_t *levels, int64_t count, int32_t level);
void RH_KERNEL(i8_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(i16_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(u8_conv2d)(const rh_conv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(i8_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);
void RH_KERNEL(i16_dwconv2d)(const rh_dwconv2d_unit *unit, const rh_pixels *pixels);
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

#define RH_TEXT_(x) #x
#define RH_TEXT(x) RH_TEXT_(x)

extern const rh_kernels RH_KERNEL(rh_kernels);

const rh_kernels RH_KERNEL(rh_kernels) = {
    .isa = RH_TEXT(RH_ISA),
    .f32_conv2d = RH_KERNEL(f32_conv2d),
    .f32_dwconv2d = RH_KERNEL(f32_dwconv2d),
    .f32_max_pool2d = RH_KERNEL(f32_max_pool2d),
    .f32_avg_pool2d = RH_KERNEL(f32_avg_pool2d),
    .f32_scale = RH_KERNEL(f32_scale),
    .f32_activation = RH_KERNEL(f32_activation),
    .f32_add = RH_KERNEL(f32_add),
    .f32_mul = RH_KERNEL(f32_mul),
    .f32_mul_pixel = RH_KERNEL(f32_mul_pixel),
    .f32_softmax = RH_KERNEL(f32_softmax),
    .f32_mask = RH_KERNEL(f32_mask),
    .i8_mask = RH_KERNEL(i8_mask),
    .i16_mask = RH_KERNEL(i16_mask),
    .i8_conv2d = RH_KERNEL(i8_conv2d),
    .i16_conv2d = RH_KERNEL(i16_conv2d),
#if defined(__AVX512VNNI__)
    .u8_conv2d = RH_KERNEL(u8_conv2d),
#endif
    .i8_dwconv2d = RH_KERNEL(i8_dwconv2d),
    .i16_dwconv2d = RH_KERNEL(i16_dwconv2d),
    .int_read = RH_KERNEL(int_read),
    .int_bytes = RH_KERNEL(int_bytes),
    .int_norm = RH_KERNEL(int_norm),
    .int_rescale = RH_KERNEL(int_rescale),
    .int_add = RH_KERNEL(int_add),
    .int_mul = RH_KERNEL(int_mul),
    .int_table = RH_KERNEL(int_table),
    .int_max_pool2d = RH_KERNEL(int_max_pool2d),
    .int_avg_pool2d = RH_KERNEL(int_avg_pool2d),
};
