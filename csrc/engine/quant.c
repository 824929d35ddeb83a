/* Integer models (docs/quant.md): the checks that no sum overflows and no table is left, and the loops around the
 * integer kernels. Activations are int16_t in the float engine's layouts; no kernel reads lanes behind the channels. */
#include <math.h>
#include <string.h>

#include "part.h"

enum { RH_MAX_SHIFT = 61 };
static const int64_t RH_MAX_BIAS = (int64_t)1 << 61;

/* ---- building ---- */

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
        int32_t *multiplier = rh_model_alloc(model, channels, sizeof(int32_t));
        int64_t *bias = rh_model_alloc(model, channels, sizeof(int64_t));
        if (desc->multiplier[k] == NULL || desc->bias[k] == NULL) return RH_INVALID;
        if (multiplier == NULL || bias == NULL) return RH_OUT_OF_MEMORY;
        for (int32_t c = 0; c < channels; c++) {
            multiplier[c] = desc->multiplier[k][c];
            bias[c] = desc->bias[k][c];
            if (bias[c] > RH_MAX_BIAS || bias[c] < -RH_MAX_BIAS) return RH_INVALID;
        }
        op->plan[k].requant.multiplier = multiplier;
        op->plan[k].requant.bias = bias;
        model->weight_bytes += channels * (int64_t)(sizeof(int32_t) + sizeof(int64_t));
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
    op->narrow = model->weight_bits == 8 && taps * op->group_inputs * each < INT32_MAX;
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

/* ---- running ---- */

static int16_t *data_of(const part *p, int32_t v) {
    return (int16_t *)p->lane + p->model->values[v].offset * p->group + layout_of(p, v)->inside;
}

static void clear_border(const part *p, int32_t v) {
    const rh_value *value = &p->model->values[v];
    if (value->border[0] + value->border[1] == 0) return;
    const rh_layout *layout = layout_of(p, v);
    const range all = share(p, p->samples, 1);
    for (int64_t s = all.begin; s < all.end; s++) {
        int16_t *sample = data_of(p, v) - layout->inside + s * layout->size;
        const int64_t side = (int64_t)value->border[1] * layout->stride,
                      above = (int64_t)value->border[0] * layout->pitch;
        memset(sample, 0, (size_t)(above + side) * sizeof(int16_t));
        for (int32_t y = 1; y < value->height; y++)
            memset(sample + above + y * (int64_t)layout->pitch - side, 0, (size_t)(2 * side) * sizeof(int16_t));
        memset(sample + layout->size - above - side, 0, (size_t)(above + side) * sizeof(int16_t));
    }
}

/* Where the first tap, the output and the residual of output pixels `first` ... start. */
static void point(const part *p, const rh_op *op, rh_int_pixels *pixels, int64_t first, int64_t count) {
    const rh_value *out = &p->model->values[op->output];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const int64_t area = (int64_t)out->height * out->width;
    const int16_t *input =
        data_of(p, op->inputs[0]) - op->padding[0] * (int64_t)from->pitch - op->padding[1] * (int64_t)from->stride;
    pixels->count = (int32_t)count;
    pixels->has_residual = op->residual >= 0;
    for (int64_t m = 0; m < count; m++) {
        const int64_t sample = (first + m) / area, at = (first + m) % area;
        const int64_t y = at / out->width, x = at % out->width;
        pixels->input[m] = input + sample * from->size + y * op->stride[0] * from->pitch +
                           x * op->stride[1] * from->stride;
        pixels->output[m] = data_of(p, op->output) + sample * to->size + y * to->pitch + x * to->stride;
        if (op->residual >= 0) {
            const rh_layout *r = layout_of(p, op->residual);
            pixels->residual[m] =
                data_of(p, op->residual) + sample * r->size + y * r->pitch + x * r->stride;
        }
    }
}

static rh_requant from_channel(const rh_requant *requant, int32_t channel) {
    rh_requant q = *requant;
    q.multiplier += channel;
    q.bias += channel;
    return q;
}

/* `count` units, the first of which has its panels at `panels`. */
static void run_units(const part *p, const rh_op *op, const rh_unit *units, int32_t count, const char *panels,
                      const rh_int_pixels *pixels) {
    const rh_op_plan *plan = &op->plan[p->subnet];
    const rh_kernels *kernels = p->model->kernels;
    const int64_t size = rh_weight_size(p->model, op);
    for (const rh_unit *unit = units; unit < units + count; unit++) {
        const rh_int_conv2d_unit args = {
            .runs = plan->runs,
            .num_runs = plan->num_runs,
            .channels = unit->channels,
            .input = unit->input,
            .output = unit->output,
            .panel = panels + (unit->panel - units->panel) * op->weight_stride * size,
            .panel_stride = op->weight_stride,
            .requant = from_channel(&plan->requant, unit->output),
        };
        (op->narrow ? kernels->i8_conv2d : kernels->i16_conv2d)(&args, pixels);
    }
}

static void run_depthwise(const part *p, const rh_op *op, const char *weight, const rh_int_pixels *pixels) {
    const rh_op_plan *plan = &op->plan[p->subnet];
    const rh_kernels *kernels = p->model->kernels;
    const int64_t size = rh_weight_size(p->model, op);
    for (int32_t s = 0; s < plan->num_stretches; s++) {
        const rh_stretch *stretch = &plan->stretches[s];
        const rh_int_dwconv2d_unit args = {
            .taps = plan->taps,
            .num_taps = op->kernel[0] * op->kernel[1],
            .channels = stretch->count,
            .offset = stretch->compact,
            .weight = weight + stretch->full * size,
            .weight_stride = op->weight_stride,
            .requant = from_channel(&plan->requant, stretch->compact),
        };
        (op->narrow ? kernels->i8_dwconv2d : kernels->i16_dwconv2d)(&args, pixels);
    }
}

static void run_conv2d(const part *p, const rh_op *op) {
    const rh_value *out = &p->model->values[op->output];
    const range pixels = share(p, (int64_t)p->samples * out->height * out->width, RH_BLOCK / 4);
    const rh_unit *units = op->plan[p->subnet].units;
    const int32_t num_units = op->depthwise ? 1 : op->plan[p->subnet].num_units;
    const int32_t step = rh_is_masked(p, op) ? 1 : num_units; /* a unit is masked once, for all pixels */
    rh_int_pixels block;
    for (int32_t u = 0; u < num_units; u += step) {
        const char *weights = rh_weights_of(p, op, op->depthwise ? NULL : &units[u]);
        for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
            point(p, op, &block, i, min64(RH_BLOCK, pixels.end - i));
            if (op->depthwise) {
                run_depthwise(p, op, weights, &block);
            } else {
                run_units(p, op, &units[u], step, weights, &block);
            }
        }
    }
}

static void run_pool2d(const part *p, const rh_op *op) {
    const rh_value *in = &p->model->values[op->inputs[0]], *out = &p->model->values[op->output];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const rh_kernels *kernels = p->model->kernels;
    const range rows = share(p, (int64_t)p->samples * out->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / out->height, oy = r % out->height;
        const int16_t *x = data_of(p, op->inputs[0]) + sample * from->size;
        int16_t *y = data_of(p, op->output) + sample * to->size + oy * to->pitch;
        for (int64_t ox = 0; ox < out->width; ox++, y += to->stride) {
            int64_t top = 0, bottom = in->height, left = 0, right = in->width, tall = bottom, wide = right;
            if (op->kind != RH_GLOBAL_AVG_POOL) {
                tall = rh_clip_window(op, 0, oy, in->height, &top, &bottom);
                wide = rh_clip_window(op, 1, ox, in->width, &left, &right);
            }
            const rh_int_window window = {
                .input = x + top * from->pitch + left * from->stride,
                .row_stride = from->pitch,
                .pixel_stride = from->stride,
                .rows = (int32_t)(bottom - top),
                .columns = (int32_t)(right - left),
            };
            if (op->kind == RH_MAX_POOL2D) {
                kernels->int_max_pool2d(y, &window, to->channels);
            } else {
                const int64_t count = op->count_include_pad ? tall * wide : (bottom - top) * (right - left);
                kernels->int_avg_pool2d(y, &window, to->channels, count, &op->plan[p->subnet].requant);
            }
        }
    }
}

/* Pixel by pixel: norms, activations, sums, products, and copies of all kinds. */
static void run_pixel(const part *p, const rh_op *op, int16_t *y, const int16_t *const *x, const rh_layout *const *in) {
    const rh_op_plan *plan = &op->plan[p->subnet];
    const rh_kernels *kernels = p->model->kernels;
    const int32_t channels = layout_of(p, op->output)->channels;
    switch (op->kind) {
        case RH_ADD: kernels->int_add(y, x[0], x[1], channels, &plan->requant); break;
        case RH_MUL: kernels->int_mul(y, x[0], x[1], channels, &plan->requant); break;
        case RH_SCALE:
            if (plan->table != NULL) {
                kernels->int_table(y, x[0], channels, plan->table, p->model->values[op->inputs[0]].low);
            } else if (plan->requant.multiplier != NULL) {
                kernels->int_norm(y, x[0], channels, &plan->requant);
            } else {
                kernels->int_rescale(y, x[0], channels, plan->requant.factors[0], &plan->requant);
            }
            break;
        default: /* RH_SUBSAMPLE, RH_PAD_CHANNELS */
            memcpy(y, x[0], (size_t)in[0]->channels * sizeof(int16_t));
            memset(y + in[0]->channels, 0, (size_t)(channels - in[0]->channels) * sizeof(int16_t));
    }
}

static void run_pixels(const part *p, const rh_op *op) {
    const rh_value *out = &p->model->values[op->output];
    const rh_layout *to = layout_of(p, op->output);
    const int64_t sy = op->kind == RH_SUBSAMPLE ? op->stride[0] : 1,
                  sx = op->kind == RH_SUBSAMPLE ? op->stride[1] : 1;
    const range rows = share(p, (int64_t)p->samples * out->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / out->height, row = r % out->height;
        int16_t *y = data_of(p, op->output) + sample * to->size + row * to->pitch;
        const int16_t *x[2];
        const rh_layout *in[2];
        int64_t steps[2];
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_value *value = &p->model->values[op->inputs[i]];
            const int pixel = op->kind == RH_MUL && value->height == 1 && value->width == 1;
            in[i] = layout_of(p, op->inputs[i]);
            x[i] = data_of(p, op->inputs[i]) + sample * in[i]->size + (pixel ? 0 : row * sy * in[i]->pitch);
            steps[i] = pixel ? 0 : sx * in[i]->stride;
        }
        for (int64_t j = 0; j < out->width; j++, y += to->stride) {
            run_pixel(p, op, y, x, in);
            for (int32_t i = 0; i < op->num_inputs; i++) x[i] += steps[i];
        }
    }
}

static void run_concat(const part *p, const rh_op *op) {
    const rh_value *out = &p->model->values[op->output];
    const rh_layout *to = layout_of(p, op->output);
    const rh_requant *requant = &op->plan[p->subnet].requant;
    const range rows = share(p, (int64_t)p->samples * out->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / out->height, row = r % out->height;
        int16_t *y = data_of(p, op->output) + sample * to->size + row * to->pitch;
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_layout *from = layout_of(p, op->inputs[i]);
            const int16_t *x = data_of(p, op->inputs[i]) + sample * from->size + row * from->pitch;
            for (int64_t j = 0; j < out->width; j++)
                p->model->kernels->int_rescale(y + j * to->stride, x + j * from->stride, from->channels,
                                               requant->factors[i], requant);
            y += from->channels;
        }
    }
}

/* q = x / scale, rounded half to even and clamped; NaN becomes `low`. */
static void read_input(const part *p, const float *input) {
    const rh_value *value = &p->model->values[0];
    const rh_layout *layout = layout_of(p, 0);
    const int64_t area = (int64_t)value->height * value->width;
    const float scale = p->model->input_scale[p->subnet];
    const float low = (float)value->low, high = (float)value->high;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = input + sample * layout->channels * area + row * value->width;
        int16_t *y = data_of(p, 0) + sample * layout->size + row * layout->pitch;
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) {
                float q = rintf(x[c * area + j] / scale);
                q = q >= low ? q : low;
                y[j * layout->stride + c] = (int16_t)(q <= high ? q : high);
            }
        }
    }
    clear_border(p, 0);
}

void rh_quant_step(const part *p, const rh_op *op, const float *input) {
    if (op == NULL) {
        read_input(p, input);
        return;
    }
    switch (op->kind) {
        case RH_CONV2D: run_conv2d(p, op); break;
        case RH_MAX_POOL2D:
        case RH_AVG_POOL2D:
        case RH_GLOBAL_AVG_POOL: run_pool2d(p, op); break;
        case RH_CONCAT: run_concat(p, op); break;
        default: run_pixels(p, op); break;
    }
    clear_border(p, op->output);
}

void rh_quant_output(const part *p, int32_t i, float *output) {
    const rh_model *model = p->model;
    const int32_t v = model->outputs[i];
    const rh_value *value = &model->values[v];
    const rh_layout *layout = layout_of(p, v);
    const float scale = model->output_scale[(int64_t)i * model->num_subnets + p->subnet];
    const int64_t area = (int64_t)value->height * value->width;
    for (int64_t r = 0; r < (int64_t)p->samples * value->height; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const int16_t *x = data_of(p, v) + sample * layout->size + row * layout->pitch;
        float *y = output + sample * layout->channels * area + row * value->width;
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[c * area + j] = (float)x[j * layout->stride + c] * scale;
        }
    }
}
