/* Building a model: copying and checking the descriptors, placing values, packing weights. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

/* ---- checks ---- */

static int32_t copy_value(rh_model *model, rh_value *value, const rh_value_desc *desc) {
    const int32_t segments = desc->num_segments, subnets = model->num_subnets;
    if (segments < 1 || desc->height < 1 || desc->width < 1 || desc->full == NULL || desc->kept == NULL)
        return RH_INVALID;
    value->num_segments = segments;
    value->height = desc->height;
    value->width = desc->width;
    value->low = desc->low;
    value->high = desc->high;
    value->full = rh_model_alloc(model, segments, sizeof(int32_t));
    value->kept = rh_model_alloc(model, (int64_t)segments * subnets, sizeof(int32_t));
    value->layout = rh_model_alloc(model, subnets, sizeof(rh_layout));
    if (value->full == NULL || value->kept == NULL || value->layout == NULL) return RH_OUT_OF_MEMORY;
    memcpy(value->full, desc->full, (size_t)segments * sizeof(int32_t));
    memcpy(value->kept, desc->kept, (size_t)segments * (size_t)subnets * sizeof(int32_t));
    int64_t total = 0;
    for (int32_t s = 0; s < segments; s++) {
        if (value->full[s] < 1) return RH_INVALID;
        total += value->full[s];
    }
    if (total > INT32_MAX - RH_LANES || total * desc->height > INT32_MAX ||
        total * desc->height * desc->width > INT32_MAX)
        return RH_TOO_LARGE;
    value->total = (int32_t)total;
    for (int32_t k = 0; k < subnets; k++) {
        for (int32_t s = 0; s < segments; s++) {
            const int32_t kept = value->kept[(int64_t)k * segments + s];
            if (kept < 0 || kept > value->full[s]) return RH_INVALID;
            if (k > 0 && kept < value->kept[(int64_t)(k - 1) * segments + s]) return RH_INVALID;
            value->layout[k].channels += kept;
        }
        if (value->layout[k].channels < 1) return RH_INVALID;
    }
    value->first = value->last = -1;
    return RH_OK;
}

/* Whether two values keep the same channels in every subnet. */
static int32_t same_channels(rh_model *model, const rh_value *a, const rh_value *b, int32_t *same) {
    *same = a->total == b->total;
    rh_stretch *left = malloc((size_t)(a->num_segments + b->num_segments) * sizeof(rh_stretch));
    if (left == NULL) return RH_OUT_OF_MEMORY;
    rh_stretch *right = left + a->num_segments;
    for (int32_t k = 0; *same && k < model->num_subnets; k++) {
        const int32_t n = rh_value_stretches(a, k, left), m = rh_value_stretches(b, k, right);
        *same = n == m && memcmp(left, right, (size_t)n * sizeof(rh_stretch)) == 0;
    }
    free(left);
    return RH_OK;
}

/* Output positions of a window of `kernel` (dilated) over `size`, or more where a pool rounds up. */
static int window_fits(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                       int64_t dilation, int rounds_up) {
    const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
    if (span < 0) return 0;
    const int64_t floor = span / stride + 1;
    if (out == floor) return 1;
    /* The last window of a pool must start inside the input or the padding before it. */
    return rounds_up && out == floor + 1 && floor * stride < size + padding;
}

static int32_t check_window(const rh_op *op, const rh_value *in, const rh_value *out) {
    const int32_t size[2] = {in->height, in->width}, made[2] = {out->height, out->width};
    const int pool = op->kind != RH_CONV2D;
    for (int i = 0; i < 2; i++) {
        if (op->kernel[i] < 1 || op->stride[i] < 1 || op->padding[i] < 0 || op->dilation[i] < 1)
            return RH_INVALID;
        if (!window_fits(size[i], made[i], op->kernel[i], op->stride[i], op->padding[i], op->dilation[i],
                         pool))
            return RH_INVALID;
        if (pool && op->padding[i] >= op->kernel[i]) return RH_INVALID;
    }
    return RH_OK;
}

static int32_t check_shapes(rh_model *model, const rh_op *op) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const int same_space = in->height == out->height && in->width == out->width;
    int32_t same = 1, status = RH_OK;
    if (op->kind != RH_CONV2D && op->kind != RH_CONCAT && op->kind != RH_PAD_CHANNELS) {
        status = same_channels(model, in, out, &same);
        if (status != RH_OK) return status;
        if (!same) return RH_INVALID;
    }
    switch (op->kind) {
        case RH_CONV2D:
        case RH_MAX_POOL2D:
        case RH_AVG_POOL2D:
            status = check_window(op, in, out);
            if (status != RH_OK || op->residual < 0) return status;
            const rh_value *residual = &model->values[op->residual];
            if (residual->height != out->height || residual->width != out->width) return RH_INVALID;
            status = same_channels(model, residual, out, &same);
            return status != RH_OK || same ? status : RH_INVALID;
        case RH_GLOBAL_AVG_POOL: return out->height == 1 && out->width == 1 ? RH_OK : RH_INVALID;
        case RH_ADD:
        case RH_MUL: {
            const rh_value *other = &model->values[op->inputs[1]];
            const int pixel = op->kind == RH_MUL && other->height == 1 && other->width == 1;
            if (!same_space || (!pixel && (other->height != in->height || other->width != in->width)))
                return RH_INVALID;
            status = same_channels(model, other, in, &same);
            return status != RH_OK || same ? status : RH_INVALID;
        }
        case RH_CONCAT:
            for (int32_t k = 0; k < model->num_subnets; k++) {
                int64_t channels = 0;
                for (int32_t i = 0; i < op->num_inputs; i++) {
                    const rh_value *part = &model->values[op->inputs[i]];
                    if (part->height != out->height || part->width != out->width) return RH_INVALID;
                    channels += part->layout[k].channels;
                }
                if (channels != out->layout[k].channels) return RH_INVALID;
            }
            return RH_OK;
        case RH_PAD_CHANNELS:
            for (int32_t k = 0; k < model->num_subnets; k++) {
                if (in->layout[k].channels > out->layout[k].channels) return RH_INVALID;
            }
            return same_space ? RH_OK : RH_INVALID;
        case RH_SUBSAMPLE:
            if (op->stride[0] < 1 || op->stride[1] < 1) return RH_INVALID;
            return (in->height - 1) / op->stride[0] + 1 == out->height &&
                           (in->width - 1) / op->stride[1] + 1 == out->width
                       ? RH_OK
                       : RH_INVALID;
        default: return same_space ? RH_OK : RH_INVALID;
    }
}

static int32_t copy_op(rh_model *model, rh_op *op, const rh_op_desc *desc, int32_t index) {
    if (desc->kind < RH_CONV2D || desc->kind > RH_SOFTMAX) return RH_UNSUPPORTED;
    if (desc->activation < RH_NONE || desc->activation > RH_TANH) return RH_UNSUPPORTED;
    const int32_t wanted = desc->kind == RH_ADD || desc->kind == RH_MUL ? 2 : 1;
    if (desc->inputs == NULL || (desc->kind == RH_CONCAT ? desc->num_inputs < 1 : desc->num_inputs != wanted))
        return RH_INVALID;
    op->kind = desc->kind;
    op->activation = desc->activation;
    op->num_inputs = desc->num_inputs;
    op->output = desc->output;
    op->residual = desc->kind == RH_CONV2D ? desc->residual : -1;
    op->count_include_pad = desc->count_include_pad;
    op->group_inputs = desc->group_inputs;
    op->together = 1;
    for (int i = 0; i < 2; i++) {
        op->kernel[i] = desc->kernel[i];
        op->stride[i] = desc->stride[i];
        op->padding[i] = desc->padding[i];
        op->dilation[i] = desc->kind == RH_CONV2D ? desc->dilation[i] : 1;
    }
    op->inputs = rh_model_alloc(model, op->num_inputs, sizeof(int32_t));
    op->plan = rh_model_alloc(model, model->num_subnets, sizeof(rh_op_plan));
    if (op->inputs == NULL || op->plan == NULL) return RH_OUT_OF_MEMORY;
    memcpy(op->inputs, desc->inputs, (size_t)op->num_inputs * sizeof(int32_t));
    for (int32_t i = 0; i <= op->num_inputs; i++) {
        const int32_t v = i < op->num_inputs ? op->inputs[i] : op->residual;
        if (i == op->num_inputs && v < 0) continue;
        if (v < 0 || v >= model->num_values || (v > 0 && model->values[v].first < 0)) return RH_INVALID;
        model->values[v].last = index;
    }
    if (op->output < 1 || op->output >= model->num_values || model->values[op->output].first >= 0)
        return RH_INVALID;
    model->values[op->output].first = model->values[op->output].last = index;
    return check_shapes(model, op);
}

/* ---- layouts ---- */

static int32_t lay_out(rh_model *model) {
    for (int32_t i = 0; i < model->num_ops; i++) {
        const rh_op *op = &model->ops[i];
        if (op->kind != RH_CONV2D) continue;
        rh_value *in = &model->values[op->inputs[0]];
        for (int d = 0; d < 2; d++) {
            if (in->border[d] < op->padding[d]) in->border[d] = op->padding[d];
        }
    }
    rh_value *input = &model->values[0];
    input->compact = 1;
    for (int32_t i = 0; i < model->num_ops; i++) {
        const rh_op *op = &model->ops[i];
        const int sums = op->kind == RH_CONV2D && op->group_inputs == input->total;
        for (int32_t j = 0; j < op->num_inputs; j++) input->compact &= op->inputs[j] != 0 || sums;
        input->compact &= op->residual != 0;
    }
    for (int32_t v = 0; v < model->num_values; v++) {
        rh_value *value = &model->values[v];
        for (int32_t k = 0; k < model->num_subnets; k++) {
            rh_layout *layout = &value->layout[k];
            layout->stride = value->compact ? layout->channels : rh_round_up(layout->channels, RH_LANES);
            const int64_t rows = value->height + 2LL * value->border[0],
                          columns = value->width + 2LL * value->border[1];
            if (columns > INT32_MAX / layout->stride || rows > INT32_MAX / (columns * layout->stride))
                return RH_TOO_LARGE;
            layout->pitch = (int32_t)(columns * layout->stride);
            layout->size = (int32_t)(rows * layout->pitch);
            layout->inside = value->border[0] * layout->pitch + value->border[1] * layout->stride;
        }
    }
    return RH_OK;
}

/* ---- scales and shifts ---- */

/* Per-subnet arrays, zero-padded to a whole panel; one copy where the caller gave one pointer. */
static const float *copy_channels(rh_model *model, const rh_op *op, const float *const *arrays, int32_t k,
                                  float missing, int is_scale) {
    const float *from = arrays == NULL ? NULL : arrays[k];
    if (k > 0 && (arrays == NULL || arrays[k - 1] == from))
        return is_scale ? op->plan[k - 1].scale : op->plan[k - 1].shift;
    int32_t same = k; /* subnets are ordered: the last one with this pointer has the most channels */
    while (same + 1 < model->num_subnets && (arrays == NULL || arrays[same + 1] == from)) same++;
    const int32_t channels = model->values[op->output].layout[same].channels;
    const int64_t padded = rh_round_up(channels, RH_LANES);
    float *to = rh_model_alloc(model, padded, sizeof(float));
    if (to == NULL) return NULL;
    for (int32_t c = 0; c < channels; c++) to[c] = from == NULL ? missing : from[c];
    model->weight_bytes += padded * (int64_t)sizeof(float);
    return to;
}

static int32_t copy_epilogue(rh_model *model, rh_op *op, const rh_op_desc *desc) {
    for (int32_t k = 0; k < model->num_subnets; k++) {
        op->plan[k].scale = copy_channels(model, op, desc->scale, k, 1.0f, 1);
        if (op->plan[k].scale == NULL) return RH_OUT_OF_MEMORY;
        op->plan[k].shift = copy_channels(model, op, desc->shift, k, 0.0f, 0);
        if (op->plan[k].shift == NULL) return RH_OUT_OF_MEMORY;
    }
    return RH_OK;
}

static int32_t plan_op(rh_model *model, rh_op *op, const rh_op_desc *desc) {
    for (int32_t k = 0; k < model->num_subnets; k++) {
        for (int32_t i = 0; i < op->num_inputs; i++)
            op->plan[k].work += model->values[op->inputs[i]].layout[k].size;
        op->plan[k].work += model->values[op->output].layout[k].size;
    }
    if (model->weight_bits != 0) return rh_quant_plan(model, op, desc);
    if (op->kind != RH_CONV2D && op->kind != RH_SCALE) return RH_OK;
    const int32_t status = copy_epilogue(model, op, desc);
    return status != RH_OK || op->kind == RH_SCALE ? status : rh_conv2d_plan(model, op, desc);
}

static int32_t build(rh_model *model, const rh_model_desc *desc, int32_t *failed_op) {
    model->values = rh_model_alloc(model, model->num_values, sizeof(rh_value));
    model->ops = rh_model_alloc(model, model->num_ops, sizeof(rh_op));
    model->outputs = rh_model_alloc(model, model->num_outputs, sizeof(int32_t));
    if (model->values == NULL || model->ops == NULL || model->outputs == NULL) return RH_OUT_OF_MEMORY;
    int32_t status = RH_OK;
    for (int32_t v = 0; status == RH_OK && v < model->num_values; v++)
        status = copy_value(model, &model->values[v], &desc->values[v]);
    if (status != RH_OK) return status;
    for (int32_t i = 0; i < model->num_ops; i++) {
        *failed_op = i;
        status = copy_op(model, &model->ops[i], &desc->ops[i], i);
        if (status != RH_OK) return status;
    }
    *failed_op = -1;
    for (int32_t i = 0; i < model->num_outputs; i++) {
        const int32_t v = desc->outputs[i];
        if (v < 0 || v >= model->num_values || (v > 0 && model->values[v].first < 0)) return RH_INVALID;
        model->outputs[i] = v;
        model->values[v].last = model->num_ops;
    }
    status = lay_out(model);
    if (status == RH_OK && model->weight_bits != 0) status = rh_quant_check(model, desc);
    if (status != RH_OK) return status;
    for (int32_t i = 0; i < model->num_ops; i++) {
        *failed_op = i;
        status = plan_op(model, &model->ops[i], &desc->ops[i]);
        if (status != RH_OK) return status;
    }
    *failed_op = -1;
    return rh_arena_plan(model);
}

int32_t rh_model_build(const rh_model_desc *desc, rh_model **model, int32_t *failed_op) {
    *model = NULL;
    *failed_op = -1;
    if (desc->num_subnets < 1 || desc->num_subnets > RH_MAX_SUBNETS || desc->num_values < 1 ||
        desc->num_ops < 0 || desc->num_outputs < 1 || desc->values == NULL || desc->ops == NULL ||
        desc->outputs == NULL || (desc->weight_bits != 0 && desc->weight_bits != 8 && desc->weight_bits != 16))
        return RH_INVALID;
    rh_model *made = calloc(1, sizeof(rh_model));
    if (made == NULL) return RH_OUT_OF_MEMORY;
    atomic_init(&made->references, 1);
    made->kernels = rh_kernels_choose();
    made->num_subnets = desc->num_subnets;
    made->num_values = desc->num_values;
    made->num_ops = desc->num_ops;
    made->num_outputs = desc->num_outputs;
    made->weight_bits = desc->weight_bits;
    const int32_t status = build(made, desc, failed_op);
    if (status != RH_OK) {
        rh_model_release(made);
        return status;
    }
    *model = made;
    return RH_OK;
}
