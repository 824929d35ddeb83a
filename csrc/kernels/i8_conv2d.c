/* 8-bit weights whose sums fit 32 bits. */
#define RH_WEIGHT int8_t
#define RH_SUM int32_t
#define RH_CONV2D_NAME i8_conv2d
#define RH_DWCONV2D_NAME i8_dwconv2d
#include "int_conv2d.h"
