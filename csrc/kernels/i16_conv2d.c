/* Weights of up to 16 bits, sums of 64. */
#define RH_WEIGHT int16_t
#define RH_SUM int64_t
#define RH_CONV2D_NAME i16_conv2d
#define RH_DWCONV2D_NAME i16_dwconv2d
#include "int_conv2d.h"
