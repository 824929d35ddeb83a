/* Building a model in integers (docs/quant.md): the checks that no sum overflows and no table is left. */
#include <math.h>
#include <string.h>

#include "part.h"

enum { RH_MAX_SHIFT = 61 };
static const int64_t RH_MAX_BIAS = (int64_t)1 << 61;

static float *copy_scales(rh_model *model, const float *scales, int64_t count) {
    float *copy = rh_model_alloc(model, count, sizeof(float));
    for (int64_t i = 0; copy != NULL && i < count; i++) copy[i] = scales[i];
    return copy;
}

int32_t rh_quant_check(rh_model *model, const rh_model_desc *desc) {
    if (desc->input_scale == NULL || desc->output_scale == NULL) return RH_INVALID;
    for (int32_t v = 0; v < model->num_values; v++) {
        const rh_value *value = &model->values[v];
        if (value->low < -INT16_MAX || value->low > 0 || value->high < 0 || value->high > INT16_MAX)
            return RH_INVALID;
    }
    const int64_t subnets = model->num_subnets;
    for (int64_t k = 0; k < subnets; k++) {
        if (!(desc->input_scale[k] > 0.0f)) return RH_INVALID;
    }
    model->input_scale = copy_scales(model, desc->input_scale, subnets);
    model->output_scale = copy_scales(model, desc->output_scale, subnets * model->num_outputs);
    return model->input_scale == NULL || model->output_scale == NULL ? RH_OUT_OF_MEMORY : RH_OK;
}

static int64_t magnitude(const rh_value *value) { return value->high > -value->low ? value->high : -value->low; }

static int32_t copy_multipliers(rh_model *model, rh_op *op, const rh_quant_desc *desc) {
    if (desc->multiplier == NULL || desc->bias == NULL) return RH_INVALID;
    for (int32_t k = 0; k < model->num_subnets; k++) {
        const int32_t channels = model->values[op->output].layout[k].channels;
        const int32_t whole = rh_round_up(channels, RH_LANES); /* kernels may make lanes that nobody reads */
        int32_t *multiplier = rh_model_alloc(model, whole, sizeof(int32_t));
        int64_t *bias = rh_model_alloc(model, whole, sizeof(int64_t));
        if (desc->multiplier[k] == NULL || desc->bias[k] == NULL) return RH_INVALID;
        if (multiplier == NULL || bias == NULL) return RH_OUT_OF_MEMORY;
        for (int32_t c = 0; c < channels; c++) {
            multiplier[c] = desc->multiplier[k][c];
            bias[c] = desc->bias[k][c];
            if (bias[c] > RH_MAX_BIAS || bias[c] < -RH_MAX_BIAS) return RH_INVALID;
        }
        op->plan[k].requant.multiplier = multiplier;
        op->plan[k].requant.bias = bias;
        model->weight_bytes += whole * (int64_t)(sizeof(int32_t) + sizeof(int64_t));
    }
    return RH_OK;
}

static int32_t copy_tables(rh_model *model, rh_op *op, const rh_quant_desc *desc) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const int32_t count = in->high - in->low + 1;
    for (int32_t k = 0; k < model->num_subnets; k++) {
        int16_t *table = rh_model_alloc(model, count, sizeof(int16_t));
        if (desc->table[k] == NULL) return RH_INVALID;
        if (table == NULL) return RH_OUT_OF_MEMORY;
        for (int32_t i = 0; i < count; i++) {
            table[i] = desc->table[k][i];
            if (table[i] < out->low || table[i] > out->high) return RH_INVALID;
        }
        op->plan[k].table = table;
        model->weight_bytes += count * (int64_t)sizeof(int16_t);
    }
    return RH_OK;
}

/* Shift, bounds, factors. */
static int32_t copy_requant(rh_model *model, rh_op *op, const rh_quant_desc *desc, int32_t num_factors) {
    const rh_value *out = &model->values[op->output];
    if (desc->shift == NULL || desc->high == NULL || desc->num_factors != num_factors ||
        (num_factors > 0 && desc->factors == NULL))
        return RH_INVALID;
    for (int32_t k = 0; k < model->num_subnets; k++) {
        rh_requant *q = &op->plan[k].requant;
        int64_t *factors = rh_model_alloc(model, num_factors, sizeof(int64_t));
        if (factors == NULL) return RH_OUT_OF_MEMORY;
        q->shift = desc->shift[k];
        q->low = out->low;
        q->high = desc->high[k];
        q->factors = factors;
        if (q->shift < 1 || q->shift > RH_MAX_SHIFT || q->high < 0 || q->high > out->high) return RH_INVALID;
        for (int32_t i = 0; i < num_factors; i++) {
            factors[i] = desc->factors[(int64_t)k * num_factors + i];
            if (factors[i] < 0) return RH_INVALID;
        }
    }
    return RH_OK;
}

/* Of all the weights that subnet `k` uses for a channel, counted from that of the first panel. */
static int32_t sum_of_weights(const rh_op *op, int32_t k, int32_t channel) {
    int32_t sum = 0;
    for (int32_t r = 0; r < op->plan[k].num_runs; r++) {
        const rh_run_of_rows run = op->plan[k].runs[r];
        for (int32_t row = run.row; row < run.row + run.length; row++) {
            const int64_t at = rh_packed_at(op, channel, row);
            if (op->levels == NULL || op->levels[at] <= k) sum += ((const int8_t *)op->integers)[at];
        }
    }
    return sum;
}

/* Room for the inputs as bytes; the sums of subnet `k` start where the offset of those is taken off again: beyond 32
 * bits, perhaps, but the sums end within them. */
static int32_t plan_bytes(rh_model *model, rh_op *op, int32_t k) {
    const rh_layout *in = &model->values[op->inputs[0]].layout[k];
    rh_op_plan *plan = &op->plan[k];
    const int32_t count = plan->units[plan->num_units - 1].panel * RH_LANES + RH_UNIT;
    const int32_t offset = rh_byte_offset(model, op);
    plan->start = rh_model_alloc(model, count, sizeof(int32_t));
    if (plan->start == NULL) return RH_OUT_OF_MEMORY;
    for (int32_t u = 0; offset != 0 && u < plan->num_units; u++) {
        const int32_t first = plan->units[u].panel * RH_LANES;
        for (int32_t c = first; c < first + plan->units[u].channels; c++)
            plan->start[c] = (int32_t)(-(uint32_t)offset * (uint32_t)sum_of_weights(op, k, c));
    }
    model->weight_bytes += count * (int64_t)sizeof(int32_t);
    if (model->bytes < in->size) model->bytes = in->size;
    return RH_OK;
}

/* The weights, in 8 bits where every sum of the full layer fits 32, and a `pre` with which each subnet's do. */
static int32_t plan_conv2d(rh_model *model, rh_op *op, const rh_op_desc *desc) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const int64_t taps = (int64_t)op->kernel[0] * op->kernel[1];
    const int64_t each = magnitude(in) << (model->weight_bits - 1); /* the largest product */
    if (desc->quant.weight == NULL || desc->quant.pre == NULL || op->group_inputs < 1) return RH_INVALID;
    if (taps > INT32_MAX / RH_LANES / op->group_inputs) return RH_TOO_LARGE;
    if (desc->weight_count != (int64_t)out->total * op->group_inputs * taps) return RH_INVALID;
    for (int64_t i = 0; model->weight_bits == 8 && i < desc->weight_count; i++) {
        if (desc->quant.weight[i] < INT8_MIN || desc->quant.weight[i] > INT8_MAX) return RH_INVALID;
    }
    const int byte = in->low < 0 ? in->low >= INT8_MIN && in->high <= INT8_MAX : in->high <= UINT8_MAX;
    op->narrow = model->weight_bits == 8 && taps * op->group_inputs * each < INT32_MAX;
    op->bytes = op->narrow && byte && op->group_inputs > 1 && model->kernels->u8_conv2d != NULL;
    op->together = op->bytes ? 4 : 2;
    int32_t status = copy_multipliers(model, op, &desc->quant);
    if (status != RH_OK) return status;
    status = rh_conv2d_plan(model, op, desc);
    if (status != RH_OK) return status;
    for (int32_t k = 0; k < model->num_subnets; k++) {
        rh_op_plan *plan = &op->plan[k];
        int64_t inputs = op->depthwise ? taps : 0;
        for (int32_t r = 0; r < plan->num_runs; r++) inputs += plan->runs[r].length;
        plan->requant.pre = desc->quant.pre[k];
        if (plan->requant.pre < 0 || plan->requant.pre > 31) return RH_INVALID;
        if (((inputs * each) >> plan->requant.pre) + 1 > INT32_MAX) return RH_INVALID;
        if (op->bytes && (status = plan_bytes(model, op, k)) != RH_OK) return status;
    }
    return RH_OK;
}

/* 2 m (factor X + 2^n) < 2^63 for every mean of m positions. */
static int32_t check_means(const rh_model *model, const rh_op *op) {
    const rh_value *in = &model->values[op->inputs[0]];
    const int64_t positions = op->kind == RH_AVG_POOL2D ? (int64_t)op->kernel[0] * op->kernel[1]
                                                        : (int64_t)in->height * in->width;
    for (int32_t k = 0; k < model->num_subnets; k++) {
        const rh_requant *q = &op->plan[k].requant;
        const int64_t each = q->factors[0] * magnitude(in) + ((int64_t)1 << q->shift);
        if (positions > INT64_MAX / 2 / each) return RH_INVALID;
    }
    return RH_OK;
}

int32_t rh_quant_plan(rh_model *model, rh_op *op, const rh_op_desc *desc) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const rh_quant_desc *quant = &desc->quant;
    int32_t status;
    switch (op->kind) {
        case RH_MAX_POOL2D:
        case RH_SUBSAMPLE:
        case RH_PAD_CHANNELS: return in->low >= out->low && in->high <= out->high ? RH_OK : RH_INVALID;
        case RH_CONV2D:
            status = copy_requant(model, op, quant, op->residual >= 0);
            return status != RH_OK ? status : plan_conv2d(model, op, desc);
        case RH_SCALE:
            if (quant->table != NULL) return copy_tables(model, op, quant);
            status = copy_requant(model, op, quant, quant->multiplier == NULL);
            return status != RH_OK || quant->multiplier == NULL ? status : copy_multipliers(model, op, quant);
        case RH_AVG_POOL2D:
        case RH_GLOBAL_AVG_POOL:
            status = copy_requant(model, op, quant, 1);
            return status != RH_OK ? status : check_means(model, op);
        case RH_ADD:
        case RH_CONCAT: return copy_requant(model, op, quant, op->num_inputs);
        case RH_MUL: return copy_requant(model, op, quant, 1);
        default: return RH_UNSUPPORTED;
    }
}
