/* The loops around the kernels of a model in floats, but for convolutions and pools. */
#include <string.h>

#include "part.h"

/* ---- elementwise: rows of pixels, or all pixels at once where no border lies between the rows ---- */

static void run_elementwise(const part *p, const rh_op *op) {
    const rh_value *value = &p->model->values[op->output];
    const int32_t second = op->num_inputs > 1 ? op->inputs[1] : op->inputs[0];
    const rh_layout *a = layout_of(p, op->inputs[0]), *b = layout_of(p, second),
                    *to = layout_of(p, op->output);
    const rh_value *other = &p->model->values[second];
    const int pixel = op->kind == RH_MUL && (other->height != value->height || other->width != value->width);
    const int32_t line = value->width * to->stride;
    const int touching = a->pitch == line && to->pitch == line && a->size == to->size && !pixel &&
                         b->pitch == line && b->size == to->size && to->size == line * value->height;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    const int64_t step = touching && rows.end > rows.begin ? rows.end - rows.begin : 1;
    const rh_kernels *kernels = p->model->kernels;
    for (int64_t r = rows.begin; r < rows.end; r += step) {
        const int64_t sample = r / value->height, y = r % value->height;
        const float *x = rh_row_of(p, op->inputs[0], sample, y);
        const float *z = rh_row_of(p, second, sample, pixel ? 0 : y);
        float *out = rh_row_of(p, op->output, sample, y);
        if (op->kind == RH_SCALE) {
            const rh_op_plan *plan = &op->plan[p->subnet];
            const rh_epilogue epilogue = {plan->scale, plan->shift, op->activation};
            kernels->f32_scale(out, x, step * value->width, to->stride, &epilogue);
        } else if (op->kind == RH_ADD) {
            kernels->f32_add(out, x, z, step * line, op->activation);
        } else if (pixel) {
            kernels->f32_mul_pixel(out, x, z, value->width, to->stride, op->activation);
        } else {
            kernels->f32_mul(out, x, z, step * line, op->activation);
        }
    }
}

/* ---- copies: every `stride`-th pixel of the inputs, their channels one after the other, zeros behind ----
 */

static void run_copy(const part *p, const rh_op *op) {
    const rh_value *value = &p->model->values[op->output];
    const rh_layout *to = layout_of(p, op->output);
    const int64_t sy = op->kind == RH_SUBSAMPLE ? op->stride[0] : 1,
                  sx = op->kind == RH_SUBSAMPLE ? op->stride[1] : 1;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        float *y = rh_row_of(p, op->output, sample, row);
        int32_t channel = 0;
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_layout *from = layout_of(p, op->inputs[i]);
            const float *x = rh_row_of(p, op->inputs[i], sample, row * sy);
            const size_t bytes = (size_t)from->channels * sizeof(float);
            for (int64_t j = 0; j < value->width; j++)
                memcpy(y + j * to->stride + channel, x + j * sx * from->stride, bytes);
            channel += from->channels;
        }
        const size_t rest = (size_t)(to->stride - channel) * sizeof(float);
        for (int64_t j = 0; rest > 0 && j < value->width; j++) memset(y + j * to->stride + channel, 0, rest);
    }
}

static void run_softmax(const part *p, const rh_op *op) {
    const rh_value *value = &p->model->values[op->output];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = rh_row_of(p, op->inputs[0], sample, row);
        float *y = rh_row_of(p, op->output, sample, row);
        for (int64_t j = 0; j < value->width; j++)
            p->model->kernels->f32_softmax(y + j * to->stride, x + j * from->stride, to->channels);
    }
}

/* ---- the way in and out ---- */

static void read_input(const part *p, const float *input) {
    const rh_value *value = &p->model->values[0];
    const rh_layout *layout = layout_of(p, 0);
    const int64_t area = (int64_t)value->height * value->width;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = input + rh_outside(p, 0, sample, row);
        float *y = rh_row_of(p, 0, sample, row);
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[j * layout->stride + c] = x[c * area + j];
        }
        for (int32_t c = layout->channels; c < layout->stride; c++) {
            for (int64_t j = 0; j < value->width; j++) y[j * layout->stride + c] = 0.0f;
        }
    }
}

void rh_float_step(const part *p, const rh_op *op, const float *input) {
    if (op == NULL) {
        read_input(p, input);
        return;
    }
    switch (op->kind) {
        case RH_CONV2D: rh_run_conv2d(p, op); break;
        case RH_MAX_POOL2D:
        case RH_AVG_POOL2D:
        case RH_GLOBAL_AVG_POOL: rh_run_pool2d(p, op); break;
        case RH_SCALE:
        case RH_ADD:
        case RH_MUL: run_elementwise(p, op); break;
        case RH_SOFTMAX: run_softmax(p, op); break;
        default: run_copy(p, op); break;
    }
}

void rh_float_output(const part *p, int32_t i, float *output) {
    const int32_t v = p->model->outputs[i];
    const rh_value *value = &p->model->values[v];
    const rh_layout *layout = layout_of(p, v);
    const int64_t area = (int64_t)value->height * value->width;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = rh_row_of(p, v, sample, row);
        float *y = output + rh_outside(p, v, sample, row);
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[c * area + j] = x[j * layout->stride + c];
        }
    }
}
