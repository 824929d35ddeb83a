/* The loops around the kernels of a model in integers (docs/quant.md). Activations are int16_t in the float engine's
 * layouts; no kernel reads lanes behind the channels. */
#include <math.h>
#include <string.h>

#include "part.h"

static int16_t *row_of(const part *p, int32_t v, int64_t sample, int64_t row) {
    return (int16_t *)p->lane + rh_at(p, v, sample, row);
}

/* Where the first tap, the output and the residual of output pixels `first` ... start. */
static void point(const part *p, const rh_op *op, rh_int_pixels *pixels, int64_t first, int64_t count) {
    const rh_value *out = &p->model->values[op->output];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const int64_t area = (int64_t)out->height * out->width;
    const int64_t side = op->padding[1] * (int64_t)from->stride;
    pixels->count = (int32_t)count;
    pixels->has_residual = op->residual >= 0;
    for (int64_t m = 0; m < count; m++) {
        const int64_t sample = (first + m) / area, at = (first + m) % area;
        const int64_t y = at / out->width, x = at % out->width;
        pixels->input[m] = row_of(p, op->inputs[0], sample, y * op->stride[0] - op->padding[0]) - side +
                           x * op->stride[1] * from->stride;
        pixels->output[m] = row_of(p, op->output, sample, y) + x * to->stride;
        if (op->residual >= 0) {
            pixels->residual[m] = row_of(p, op->residual, sample, y) + x * layout_of(p, op->residual)->stride;
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
        const int16_t *x = row_of(p, op->inputs[0], sample, 0);
        int16_t *y = row_of(p, op->output, sample, oy);
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
        int16_t *y = row_of(p, op->output, sample, row);
        const int16_t *x[2];
        const rh_layout *in[2];
        int64_t steps[2];
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_value *value = &p->model->values[op->inputs[i]];
            const int pixel = op->kind == RH_MUL && value->height == 1 && value->width == 1;
            in[i] = layout_of(p, op->inputs[i]);
            x[i] = row_of(p, op->inputs[i], sample, pixel ? 0 : row * sy);
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
        int16_t *y = row_of(p, op->output, sample, row);
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_layout *from = layout_of(p, op->inputs[i]);
            const int16_t *x = row_of(p, op->inputs[i], sample, row);
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
        const float *x = input + rh_outside(p, 0, sample, row);
        int16_t *y = row_of(p, 0, sample, row);
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) {
                float q = rintf(x[c * area + j] / scale);
                q = q >= low ? q : low;
                y[j * layout->stride + c] = (int16_t)(q <= high ? q : high);
            }
        }
    }
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
        const int16_t *x = row_of(p, v, sample, row);
        float *y = output + rh_outside(p, v, sample, row);
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[c * area + j] = (float)x[j * layout->stride + c] * scale;
        }
    }
}
