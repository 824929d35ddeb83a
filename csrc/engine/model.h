/* What a model is made of after it is built. */
#ifndef RH_MODEL_H
#define RH_MODEL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../include/rheostat.h"
#include "../kernels/kernels.h"

enum { RH_MAX_SUBNETS = 1024, RH_ALIGN = 64 };

/* Channels kept one after the other both in an activation (from `compact`) and in the full network (from
 * `full`). */
typedef struct {
    int32_t compact;
    int32_t full;
    int32_t count;
} rh_stretch;

/* A value in one subnet: pixels of `stride` floats, rows of `pitch`, a zero border that convolutions may
 * read. */
typedef struct {
    int32_t channels;
    int32_t stride;
    int32_t pitch;
    int32_t size;   /* floats of a sample, border included */
    int32_t inside; /* floats before the first pixel inside the border */
} rh_layout;

typedef struct {
    int32_t num_segments;
    int32_t *full;
    int32_t *kept; /* [subnet][segment] */
    int32_t total; /* full channels */
    int32_t height;
    int32_t width;
    int32_t low; /* integer models */
    int32_t high;
    int32_t border[2]; /* rows above and below, pixels left and right */
    int32_t compact;   /* pixels of exactly `channels` floats: an input that only convolutions read */
    int32_t first;     /* the ops between which it is alive */
    int32_t last;
    int64_t offset;    /* floats a sample before it in the arena */
    rh_layout *layout; /* per subnet */
} rh_value;

/* Up to RH_UNIT output channels of a convolution. */
typedef struct {
    int32_t input; /* first channel read: where its group starts */
    int32_t output;
    int32_t channels;
    int32_t panel;
} rh_unit;

/* An op in one subnet. */
typedef struct {
    const float *scale;
    const float *shift;
    int64_t work;         /* multiply-adds or floats moved for a sample */
    rh_run_of_rows *runs; /* conv2d */
    int32_t num_runs;
    int32_t num_units;
    rh_unit *units;
    int32_t *taps; /* depthwise */
    rh_stretch *stretches;
    int32_t num_stretches;
    rh_requant requant; /* integer models */
    const int16_t *table;
    int32_t *start; /* of the sums of each panel, where the inputs become bytes */
} rh_op_plan;

typedef struct {
    int32_t kind;
    int32_t activation;
    int32_t *inputs;
    int32_t num_inputs;
    int32_t output;
    int32_t residual;
    int32_t kernel[2];
    int32_t stride[2];
    int32_t padding[2];
    int32_t dilation[2];
    int32_t count_include_pad;
    int32_t group_inputs;
    int32_t depthwise;
    float *weight;         /* panels, or [tap][weight_stride] */
    void *integers;        /* integer models: the same, of int8_t or int16_t */
    int32_t narrow;        /* int8_t, and every sum fits 32 bits */
    int32_t bytes;         /* so are the inputs made bytes, for u8_conv2d */
    int32_t together;      /* rows that lie together in a panel: 1, for integers 2 or (bytes) 4 */
    uint8_t *levels;       /* laid out as the weights; NULL where every subnet uses all of them */
    int32_t whole_from;    /* the first subnet that uses all that is packed */
    int64_t weight_stride; /* numbers from a panel (depthwise: tap) to the next */
    rh_op_plan *plan;      /* per subnet */
} rh_op;

typedef struct rh_allocation {
    struct rh_allocation *next;
} rh_allocation;

struct rh_model {
    atomic_int references;
    const rh_kernels *kernels;
    int32_t num_subnets;
    int32_t num_values;
    int32_t num_ops;
    int32_t num_outputs;
    rh_value *values;
    rh_op *ops;
    int32_t *outputs;
    int64_t arena;       /* floats (integer models: int16_t) a sample */
    int64_t bytes;       /* of the largest input that is made bytes, a sample */
    int64_t scratch;     /* bytes of the most weights that a thread masks at a time */
    int32_t weight_bits; /* 0: floats */
    float *input_scale;  /* integer models: per subnet, [output][subnet] */
    float *output_scale;
    int64_t weight_bytes;
    rh_allocation *allocations;
};

/* Zeroed memory that lives as long as the model; NULL when there is none. */
void *rh_model_alloc(rh_model *model, int64_t count, int64_t size);
void rh_model_retain(rh_model *model);

/* The steps of rh_model_build after the descriptors are copied and checked. */
int32_t rh_conv2d_plan(rh_model *model, rh_op *op, const rh_op_desc *desc);
int32_t rh_arena_plan(rh_model *model);
int32_t rh_quant_check(rh_model *model, const rh_model_desc *desc);
int32_t rh_quant_plan(rh_model *model, rh_op *op, const rh_op_desc *desc);

/* The kept channels of `value` in subnet `k` (or, with k = -1, all of them), merged into the fewest
 * stretches. Returns their number, at most value->num_segments. */
int32_t rh_value_stretches(const rh_value *value, int32_t k, rh_stretch *stretches);

static inline int32_t rh_round_up(int32_t n, int32_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* Bytes of a number of a value. */
static inline int64_t rh_number_size(const rh_model *model) {
    return model->weight_bits == 0 ? sizeof(float) : sizeof(int16_t);
}

/* Where the weight of a row lies for a channel, counted from that of the first panel. */
static inline int64_t rh_packed_at(const rh_op *op, int64_t channel, int64_t row) {
    const int64_t together = op->together, panel = channel / RH_LANES * op->weight_stride;
    return panel + (row / together * RH_LANES + channel % RH_LANES) * together + row % together;
}

/* What is added to the inputs of `op` when they are made bytes without sign. */
static inline int32_t rh_byte_offset(const rh_model *model, const rh_op *op) {
    return model->values[op->inputs[0]].low < 0 ? 128 : 0;
}

static inline int64_t rh_weight_size(const rh_model *model, const rh_op *op) {
    return model->weight_bits == 0 ? (int64_t)sizeof(float) : op->narrow ? 1 : 2;
}

#endif
