/* The loops around the kernels of a model in integers (docs/quant.md), but for convolutions and pools. Activations are
 * int16_t in the float engine's layouts; only pools read lanes behind the channels, and nobody what they make of them. */
#include <string.h>

#include "part.h"

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
        int16_t *y = rh_row_of(p, op->output, sample, row);
        const int16_t *x[2];
        const rh_layout *in[2];
        int64_t steps[2];
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_value *value = &p->model->values[op->inputs[i]];
            const int pixel = op->kind == RH_MUL && value->height == 1 && value->width == 1;
            in[i] = layout_of(p, op->inputs[i]);
            x[i] = rh_row_of(p, op->inputs[i], sample, pixel ? 0 : row * sy);
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
        int16_t *y = rh_row_of(p, op->output, sample, row);
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_layout *from = layout_of(p, op->inputs[i]);
            const int16_t *x = rh_row_of(p, op->inputs[i], sample, row);
            for (int64_t j = 0; j < out->width; j++)
                p->model->kernels->int_rescale(y + j * to->stride, x + j * from->stride, from->channels,
                                               requant->factors[i], requant);
            y += from->channels;
        }
    }
}

static void read_input(const part *p, const float *input) {
    const rh_value *value = &p->model->values[0];
    const rh_layout *layout = layout_of(p, 0);
    const int64_t area = (int64_t)value->height * value->width;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = input + rh_outside(p, 0, sample, row);
        int16_t *y = rh_row_of(p, 0, sample, row);
        for (int32_t c = 0; c < layout->channels; c++)
            p->model->kernels->int_read(y + c, layout->stride, x + c * area, value->width,
                                        p->model->input_scale[p->subnet], value->low, value->high);
    }
}

void rh_quant_step(const part *p, const rh_op *op, const float *input) {
    if (op == NULL) {
        read_input(p, input);
        return;
    }
    switch (op->kind) {
        case RH_CONV2D: rh_run_conv2d(p, op); break;
        case RH_MAX_POOL2D:
        case RH_AVG_POOL2D:
        case RH_GLOBAL_AVG_POOL: rh_run_pool2d(p, op); break;
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
        const int16_t *x = rh_row_of(p, v, sample, row);
        float *y = output + rh_outside(p, v, sample, row);
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[c * area + j] = (float)x[j * layout->stride + c] * scale;
        }
    }
}
