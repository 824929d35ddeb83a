/* librheostat: one network, many subnets, one set of packed weights.
 *
 * A model is built once from descriptors, is immutable afterwards and is shared by any number of contexts. A
 * context owns its activations, its threads and its active subnet, and is used by one thread at a time.
 * Subnets are ordered smallest first. Nothing here prints, exits or aborts; functions that can fail return a
 * status. docs/engine.md has the rest.
 */
#ifndef RHEOSTAT_H
#define RHEOSTAT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RH_API __attribute__((visibility("default")))

enum { RH_ABI_VERSION = 3 };

typedef enum {
    RH_OK = 0,
    RH_OUT_OF_MEMORY,
    RH_INVALID,     /* a descriptor contradicts itself or another one */
    RH_UNSUPPORTED, /* consistent, but no kernel does it */
    RH_TOO_LARGE,   /* a tensor of 2^31 floats or more */
    RH_THREADS,     /* the operating system refused to start a thread */
} rh_status;

typedef enum {
    RH_CONV2D = 0, /* also linear layers: a kernel as large as the input */
    RH_SCALE,      /* y = activation(x * scale + shift): a norm or an activation of its own */
    RH_MAX_POOL2D,
    RH_AVG_POOL2D,
    RH_GLOBAL_AVG_POOL,
    RH_ADD,
    RH_MUL, /* the second input may be 1 x 1 in space */
    RH_CONCAT,
    RH_SUBSAMPLE,
    RH_PAD_CHANNELS,
    RH_SOFTMAX,
} rh_kind;

typedef enum {
    RH_NONE = 0,
    RH_RELU,
    RH_RELU6,
    RH_HARDSWISH,
    RH_HARDSIGMOID,
    RH_SIGMOID,
    RH_SILU,
    RH_GELU,
    RH_GELU_TANH,
    RH_TANH,
} rh_activation;

/* One activation tensor without its batch: channels in segments, of which subnet k keeps the first
 * kept[k * num_segments + s] of full[s]. Vectors have height = width = 1. */
typedef struct {
    const int32_t *full;
    const int32_t *kept;
    int32_t num_segments;
    int32_t height;
    int32_t width;
    int32_t low; /* integer models: the range, low <= 0 <= high, both within 16 bits */
    int32_t high;
} rh_value_desc;

/* The integers of one op (docs/quant.md); arrays have one entry a subnet, NULL where the op needs none. */
typedef struct {
    const int16_t *weight;            /* conv2d: full, in the place of rh_op_desc.weight */
    const int32_t *const *multiplier; /* conv2d, norms: one a kept output channel */
    const int64_t *const *bias;       /* likewise */
    const int16_t *const *table;      /* an activation: one for each integer of the input, from `low` on */
    const int32_t *factors;           /* [subnet][num_factors]: one for each input that is rescaled as a whole */
    int32_t num_factors;
    const int32_t *pre; /* conv2d */
    const int32_t *shift;
    const int32_t *high;
} rh_quant_desc;

/* One op, in execution order. Fields that a kind does not use are 0 or NULL; `residual` is -1 without one. */
typedef struct {
    int32_t kind;
    int32_t activation;
    const int32_t *inputs;
    int32_t num_inputs;
    int32_t output;
    int32_t residual;  /* conv2d: the value added after scale and shift, before the activation */
    int32_t kernel[2]; /* conv2d, pools: height, width */
    int32_t stride[2]; /* conv2d, pools, subsample */
    int32_t padding[2];
    int32_t dilation[2];       /* conv2d */
    int32_t count_include_pad; /* avg_pool2d */
    int32_t group_inputs;      /* conv2d: input channels of one group of the full weight */
    const float *weight;       /* conv2d: full [O, group_inputs, kernel[0], kernel[1]] */
    const uint8_t *levels;     /* conv2d: one a weight, or NULL; subnet k uses those of level <= k, others are 0 */
    int64_t weight_count;
    const float *const
        *scale; /* conv2d, scale: per subnet, one factor an output channel kept; NULL = all ones */
    const float *const *shift; /* likewise, added; NULL = all zeros. Equal pointers are stored once. */
    rh_quant_desc quant;       /* integer models */
} rh_op_desc;

/* Value 0 is the input. Every other value is the output of exactly one op. */
typedef struct {
    const rh_value_desc *values;
    const rh_op_desc *ops;
    const int32_t *outputs;
    int32_t num_values;
    int32_t num_ops;
    int32_t num_outputs;
    int32_t num_subnets;
    int32_t weight_bits;       /* 8 or 16 for an integer model, 0 for one of floats */
    const float *input_scale;  /* integer models: one a subnet */
    const float *output_scale; /* [output][subnet] */
} rh_model_desc;

typedef struct rh_model rh_model;
typedef struct rh_context rh_context;

RH_API int32_t rh_abi_version(void);
RH_API const char *rh_status_text(int32_t status);

/* Checks, plans and packs. The descriptors and everything they point to may be freed afterwards. On failure
 * `*model` is NULL and `*failed_op` the op at fault, or -1. The caller owns one reference; each context holds
 * another. */
RH_API int32_t rh_model_build(const rh_model_desc *desc, rh_model **model, int32_t *failed_op);
RH_API void rh_model_release(rh_model *model);
RH_API int64_t
rh_model_weight_bytes(const rh_model *model); /* packed weights and levels, scales and shifts of all subnets */
RH_API const char *rh_model_isa(const rh_model *model); /* "generic", "avx2", "avx512", "avx512vnni" */

/* `threads` >= 1 includes the calling thread. The active subnet is the largest. */
RH_API int32_t rh_context_create(rh_model *model, int32_t threads, rh_context **context);
RH_API void rh_context_free(rh_context *context);
RH_API int64_t rh_context_arena_bytes(const rh_context *context); /* activations, and room to mask weights in */

/* Stores one integer; RH_INVALID (and no change) for an index out of range. */
RH_API int32_t rh_select(rh_context *context, int32_t subnet);
RH_API int32_t rh_active(const rh_context *context);

/* Runs the active subnet on `batch` >= 0 samples: input N x C x H x W, each output N x C x H x W, channels as
 * kept. Allocates nothing and cannot fail on valid arguments. */
RH_API int32_t rh_run(rh_context *context, int64_t batch, const float *input, float *const *outputs);

#ifdef __cplusplus
}
#endif
#endif
