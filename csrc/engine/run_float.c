/* The loops around the kernels of a model in floats. */
#include <string.h>

#include "part.h"

/* Floats of weights that stay in a second-level cache while pixels pass by. */
enum { RH_WEIGHTS_NEAR = 1 << 16 };

static float *row_of(const part *p, int32_t v, int64_t sample, int64_t row) { return p->lane + rh_at(p, v, sample, row); }

/* ---- convolution ---- */

typedef struct {
    const rh_op *op;
    const rh_layout *in;
    const rh_layout *out;
    const rh_layout *residual_layout;
    const float *input; /* the first tap of the first pixel */
    float *output;
    const float *residual;
    int32_t height;
    int32_t width;
} conv;

static void point(rh_pixels *pixels, const conv *c, int64_t first, int64_t count) {
    const int64_t area = (int64_t)c->height * c->width;
    int64_t sample = first / area, y = first % area / c->width, x = first % area % c->width;
    const int64_t step = (int64_t)c->op->stride[1] * c->in->stride;
    pixels->count = (int32_t)count;
    pixels->has_residual = c->residual != NULL;
    for (int32_t m = 0; m < count;) {
        const int32_t n = (int32_t)min64(count - m, c->width - x);
        const float *input = c->input + sample * c->in->size + y * c->op->stride[0] * c->in->pitch + x * step;
        float *output = c->output + sample * c->out->size + y * c->out->pitch + x * c->out->stride;
        for (int32_t i = 0; i < n; i++) pixels->input[m + i] = input + i * step;
        for (int32_t i = 0; i < n; i++) pixels->output[m + i] = output + (int64_t)i * c->out->stride;
        if (c->residual != NULL) {
            const rh_layout *r = c->residual_layout;
            const float *residual = c->residual + sample * r->size + y * r->pitch + x * r->stride;
            for (int32_t i = 0; i < n; i++) pixels->residual[m + i] = residual + (int64_t)i * r->stride;
        }
        m += n;
        x = 0;
        if (++y == c->height) {
            y = 0;
            sample++;
        }
    }
}

static void run_unit(const part *p, const conv *c, const rh_unit *unit, const float *panel,
                     const rh_pixels *pixels) {
    const rh_op_plan *plan = &c->op->plan[p->subnet];
    const rh_conv2d_unit args = {
        .runs = plan->runs,
        .num_runs = plan->num_runs,
        .channels = unit->channels,
        .input = unit->input,
        .output = unit->output,
        .lone = c->height == 1 && c->width == 1,
        .panel = panel,
        .panel_stride = c->op->weight_stride,
        .epilogue = {plan->scale + unit->output, plan->shift + unit->output, c->op->activation},
    };
    p->model->kernels->f32_conv2d(&args, pixels);
}

static void run_panels(const part *p, const conv *c) {
    const rh_op_plan *plan = &c->op->plan[p->subnet];
    const int64_t count = (int64_t)p->samples * c->height * c->width;
    const int64_t weights = (int64_t)plan->num_units * 2 * c->op->weight_stride;
    range pixels = {0, count}, units = {0, plan->num_units};
    if (plan->num_units >= p->count && weights > (int64_t)p->samples * c->in->size) {
        units = share(p, plan->num_units, 1);
    } else {
        pixels = share(p, count, RH_BLOCK / 4);
    }
    rh_pixels block;
    if (weights <= RH_WEIGHTS_NEAR && !rh_is_masked(p, c->op)) {
        for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
            point(&block, c, i, min64(RH_BLOCK, pixels.end - i));
            for (int64_t u = units.begin; u < units.end; u++)
                run_unit(p, c, &plan->units[u], rh_weights_of(p, c->op, &plan->units[u]), &block);
        }
    } else {
        for (int64_t u = units.begin; u < units.end; u++) {
            const float *panel = rh_weights_of(p, c->op, &plan->units[u]);
            for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
                point(&block, c, i, min64(RH_BLOCK, pixels.end - i));
                run_unit(p, c, &plan->units[u], panel, &block);
            }
        }
    }
}

static void run_depthwise(const part *p, const conv *c) {
    const rh_op_plan *plan = &c->op->plan[p->subnet];
    const range pixels = share(p, (int64_t)p->samples * c->height * c->width, RH_BLOCK / 4);
    const float *weight = rh_weights_of(p, c->op, NULL);
    rh_pixels block;
    for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
        point(&block, c, i, min64(RH_BLOCK, pixels.end - i));
        for (int32_t s = 0; s < plan->num_stretches; s++) {
            const rh_stretch *stretch = &plan->stretches[s];
            const rh_dwconv2d_unit args = {
                .taps = plan->taps,
                .num_taps = c->op->kernel[0] * c->op->kernel[1],
                .channels = stretch->count,
                .offset = stretch->compact,
                .weight = weight + stretch->full,
                .weight_stride = c->op->weight_stride,
                .epilogue = {plan->scale + stretch->compact, plan->shift + stretch->compact,
                             c->op->activation},
            };
            p->model->kernels->f32_dwconv2d(&args, &block);
        }
    }
}

static void run_conv2d(const part *p, const rh_op *op) {
    const rh_value *out = &p->model->values[op->output];
    const rh_layout *in = layout_of(p, op->inputs[0]);
    const conv c = {
        .op = op,
        .in = in,
        .out = layout_of(p, op->output),
        .residual_layout = op->residual < 0 ? NULL : layout_of(p, op->residual),
        .input = row_of(p, op->inputs[0], 0, -op->padding[0]) - op->padding[1] * in->stride,
        .output = row_of(p, op->output, 0, 0),
        .residual = op->residual < 0 ? NULL : row_of(p, op->residual, 0, 0),
        .height = out->height,
        .width = out->width,
    };
    if (op->depthwise) {
        run_depthwise(p, &c);
    } else {
        run_panels(p, &c);
    }
}

/* ---- pools ---- */

static void run_pool2d(const part *p, const rh_op *op) {
    const rh_value *in = &p->model->values[op->inputs[0]], *out = &p->model->values[op->output];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const range rows = share(p, (int64_t)p->samples * out->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / out->height, oy = r % out->height;
        const float *x = row_of(p, op->inputs[0], sample, 0);
        float *y = row_of(p, op->output, sample, oy);
        int64_t top, bottom, left, right;
        const int64_t tall = rh_clip_window(op, 0, oy, in->height, &top, &bottom);
        for (int64_t ox = 0; ox < out->width; ox++, y += to->stride) {
            const int64_t wide = rh_clip_window(op, 1, ox, in->width, &left, &right);
            const rh_window window = {
                .input = x + top * from->pitch + left * from->stride,
                .row_stride = from->pitch,
                .pixel_stride = from->stride,
                .rows = (int32_t)(bottom - top),
                .columns = (int32_t)(right - left),
            };
            if (op->kind == RH_MAX_POOL2D) {
                p->model->kernels->f32_max_pool2d(y, &window, to->stride);
            } else {
                const int64_t divisor = op->count_include_pad ? tall * wide : (bottom - top) * (right - left);
                p->model->kernels->f32_avg_pool2d(y, &window, to->stride, (float)divisor);
            }
        }
    }
}

static void run_global_avg_pool(const part *p, const rh_op *op) {
    const rh_value *in = &p->model->values[op->inputs[0]];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const int64_t pieces = to->stride / RH_LANES;
    const range all = share(p, p->samples * pieces, 1);
    for (int64_t i = all.begin; i < all.end; i++) {
        const int64_t sample = i / pieces, channel = i % pieces * RH_LANES;
        const rh_window window = {
            .input = row_of(p, op->inputs[0], sample, 0) + channel,
            .row_stride = from->pitch,
            .pixel_stride = from->stride,
            .rows = in->height,
            .columns = in->width,
        };
        p->model->kernels->f32_avg_pool2d(row_of(p, op->output, sample, 0) + channel, &window, RH_LANES,
                                          (float)((int64_t)in->height * in->width));
    }
}

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
        const float *x = row_of(p, op->inputs[0], sample, y);
        const float *z = row_of(p, second, sample, pixel ? 0 : y);
        float *out = row_of(p, op->output, sample, y);
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
        float *y = row_of(p, op->output, sample, row);
        int32_t channel = 0;
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_layout *from = layout_of(p, op->inputs[i]);
            const float *x = row_of(p, op->inputs[i], sample, row * sy);
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
        const float *x = row_of(p, op->inputs[0], sample, row);
        float *y = row_of(p, op->output, sample, row);
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
        float *y = row_of(p, 0, sample, row);
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
        case RH_CONV2D: run_conv2d(p, op); break;
        case RH_MAX_POOL2D:
        case RH_AVG_POOL2D: run_pool2d(p, op); break;
        case RH_GLOBAL_AVG_POOL: run_global_avg_pool(p, op); break;
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
        const float *x = row_of(p, v, sample, row);
        float *y = output + rh_outside(p, v, sample, row);
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[c * area + j] = x[j * layout->stride + c];
        }
    }
}
