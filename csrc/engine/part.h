/* What one thread does of an op. */
#ifndef RH_PART_H
#define RH_PART_H

#include "model.h"

/* `samples` samples of one subnet in one lane; the work on them is cut into `count` parts, and this is part
 * `index`. */
typedef struct {
    const rh_model *model;
    char *lane; /* float, or int16_t in integer models */
    char *scratch;
    int32_t group;
    int32_t subnet;
    int32_t samples;
    int32_t index;
    int32_t count;
} part;

typedef struct {
    int64_t begin;
    int64_t end;
} range;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* This part's share of `items` items, in multiples of `step`. */
static inline range share(const part *p, int64_t items, int64_t step) {
    const int64_t steps = (items + step - 1) / step;
    const int64_t end = steps * (p->index + 1) / p->count * step;
    return (range){steps * p->index / p->count * step, min64(end, items)};
}

static inline const rh_layout *layout_of(const part *p, int32_t v) { return &p->model->values[v].layout[p->subnet]; }

/* Where in the lane, in numbers, a row of a sample of value `v` begins, inside the border. */
static inline int64_t rh_at(const part *p, int32_t v, int64_t sample, int64_t row) {
    const rh_layout *layout = layout_of(p, v);
    return p->model->values[v].offset * p->group + layout->inside + sample * layout->size + row * layout->pitch;
}

/* The same in what the caller sees of `v`, where the channels lie one after the other. */
static inline int64_t rh_outside(const part *p, int32_t v, int64_t sample, int64_t row) {
    const rh_value *value = &p->model->values[v];
    const int64_t area = (int64_t)value->height * value->width;
    return sample * layout_of(p, v)->channels * area + row * value->width;
}

/* A row in the lane. */
static inline void *rh_row_of(const part *p, int32_t v, int64_t sample, int64_t row) {
    return p->lane + rh_at(p, v, sample, row) * rh_number_size(p->model);
}

/* The input of a convolution as bytes, borders included, behind the values. */
static inline uint8_t *rh_bytes_of(const part *p) {
    return (uint8_t *)p->lane + p->model->arena * p->group * rh_number_size(p->model);
}

/* Whether subnet `p->subnet` uses only some of the weights that `op` has packed. */
static inline int rh_is_masked(const part *p, const rh_op *op) {
    return op->levels != NULL && p->subnet < op->whole_from;
}

/* The panels of `unit`, or all weights of a depthwise convolution (NULL), as the subnet uses them: where they are packed,
 * or masked into this part's scratch, until the next call. */
const void *rh_weights_of(const part *p, const rh_op *op, const rh_unit *unit);

/* Before a convolution that wants its inputs so (op->bytes). */
void rh_make_bytes(const part *p, const rh_op *op);
void rh_run_conv2d(const part *p, const rh_op *op);
void rh_run_pool2d(const part *p, const rh_op *op);

/* An op (NULL: reading the input), without the border of its output; and output `i` as floats. */
void rh_float_step(const part *p, const rh_op *op, const float *input);
void rh_float_output(const part *p, int32_t i, float *output);
void rh_quant_step(const part *p, const rh_op *op, const float *input);
void rh_quant_output(const part *p, int32_t i, float *output);

#endif
