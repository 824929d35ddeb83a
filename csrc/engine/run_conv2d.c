/* The loops around the kernels of convolutions, in floats and in integers. */
#include "part.h"

/* Bytes of weights that stay in a second-level cache while pixels pass by. */
enum { RH_WEIGHTS_NEAR = 1 << 18 };

typedef struct {
    const rh_op *op;
    const rh_op_plan *plan;
    const rh_layout *in;
    const rh_layout *out;
    const rh_layout *residual_layout;
    const char *input; /* the first tap of the first pixel */
    char *output;
    const char *residual;
    int64_t input_size; /* bytes of a number */
    int64_t size;
    int32_t height;
    int32_t width;
} conv;

static void point(rh_pixels *pixels, const conv *c, int64_t first, int64_t count) {
    const int64_t area = (int64_t)c->height * c->width, size = c->size;
    int64_t sample = first / area, y = first % area / c->width, x = first % area % c->width;
    const int64_t step = (int64_t)c->op->stride[1] * c->in->stride;
    pixels->count = (int32_t)count;
    pixels->has_residual = c->residual != NULL;
    for (int32_t m = 0; m < count;) {
        const int32_t n = (int32_t)min64(count - m, c->width - x);
        const char *input =
            c->input + (sample * c->in->size + y * c->op->stride[0] * c->in->pitch + x * step) * c->input_size;
        char *output = c->output + (sample * c->out->size + y * c->out->pitch + x * c->out->stride) * size;
        for (int32_t i = 0; i < n; i++) pixels->input[m + i] = input + i * step * c->input_size;
        for (int32_t i = 0; i < n; i++) pixels->output[m + i] = output + i * c->out->stride * size;
        if (c->residual != NULL) {
            const rh_layout *r = c->residual_layout;
            const char *residual = c->residual + (sample * r->size + y * r->pitch + x * r->stride) * size;
            for (int32_t i = 0; i < n; i++) pixels->residual[m + i] = residual + i * r->stride * size;
        }
        m += n;
        x = 0;
        if (++y == c->height) {
            y = 0;
            sample++;
        }
    }
}

static rh_epilogue epilogue_at(const conv *c, int32_t channel) {
    return (rh_epilogue){c->plan->scale + channel, c->plan->shift + channel, c->op->activation};
}

static rh_requant requant_at(const conv *c, int32_t channel) {
    rh_requant q = c->plan->requant;
    q.multiplier += channel;
    q.bias += channel;
    return q;
}

static void run_unit(const part *p, const conv *c, const rh_unit *unit, const void *panel, const rh_pixels *pixels) {
    const rh_kernels *kernels = p->model->kernels;
    const rh_op *op = c->op;
    rh_conv2d_unit args = {
        .runs = c->plan->runs,
        .num_runs = c->plan->num_runs,
        .channels = unit->channels,
        .input = unit->input,
        .output = unit->output,
        .panel = panel,
        .panel_stride = op->weight_stride,
        .lone = c->height == 1 && c->width == 1,
        .start = op->bytes ? c->plan->start + unit->panel * RH_LANES : NULL,
    };
    if (p->model->weight_bits == 0) {
        args.after.epilogue = epilogue_at(c, unit->output);
        kernels->f32_conv2d(&args, pixels);
    } else {
        args.after.requant = requant_at(c, unit->output);
        (op->bytes ? kernels->u8_conv2d : op->narrow ? kernels->i8_conv2d : kernels->i16_conv2d)(&args, pixels);
    }
}

static void run_panels(const part *p, const conv *c) {
    const rh_op_plan *plan = c->plan;
    const int64_t count = (int64_t)p->samples * c->height * c->width;
    const int64_t weights = (int64_t)plan->num_units * 2 * c->op->weight_stride;
    range pixels = {0, count}, units = {0, plan->num_units};
    if (plan->num_units >= p->count && weights > (int64_t)p->samples * c->in->size) {
        units = share(p, plan->num_units, 1);
    } else {
        pixels = share(p, count, RH_BLOCK / 4);
    }
    rh_pixels block;
    if (weights * rh_weight_size(p->model, c->op) <= RH_WEIGHTS_NEAR && !rh_is_masked(p, c->op)) {
        for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
            point(&block, c, i, min64(RH_BLOCK, pixels.end - i));
            for (int64_t u = units.begin; u < units.end; u++)
                run_unit(p, c, &plan->units[u], rh_weights_of(p, c->op, &plan->units[u]), &block);
        }
    } else {
        for (int64_t u = units.begin; u < units.end; u++) {
            const void *panel = rh_weights_of(p, c->op, &plan->units[u]);
            for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
                point(&block, c, i, min64(RH_BLOCK, pixels.end - i));
                run_unit(p, c, &plan->units[u], panel, &block);
            }
        }
    }
}

static void run_stretch(const part *p, const conv *c, const rh_stretch *stretch, const char *weight,
                        const rh_pixels *pixels) {
    const rh_kernels *kernels = p->model->kernels;
    const rh_op *op = c->op;
    rh_dwconv2d_unit args = {
        .taps = c->plan->taps,
        .num_taps = op->kernel[0] * op->kernel[1],
        .channels = stretch->count,
        .offset = stretch->compact,
        .weight = weight + stretch->full * rh_weight_size(p->model, op),
        .weight_stride = op->weight_stride,
    };
    if (p->model->weight_bits == 0) {
        args.after.epilogue = epilogue_at(c, stretch->compact);
        kernels->f32_dwconv2d(&args, pixels);
    } else {
        args.after.requant = requant_at(c, stretch->compact);
        (op->narrow ? kernels->i8_dwconv2d : kernels->i16_dwconv2d)(&args, pixels);
    }
}

static void run_depthwise(const part *p, const conv *c) {
    const range pixels = share(p, (int64_t)p->samples * c->height * c->width, RH_BLOCK / 4);
    const char *weight = rh_weights_of(p, c->op, NULL);
    rh_pixels block;
    for (int64_t i = pixels.begin; i < pixels.end; i += RH_BLOCK) {
        point(&block, c, i, min64(RH_BLOCK, pixels.end - i));
        for (int32_t s = 0; s < c->plan->num_stretches; s++)
            run_stretch(p, c, &c->plan->stretches[s], weight, &block);
    }
}

void rh_make_bytes(const part *p, const rh_op *op) {
    const rh_layout *in = layout_of(p, op->inputs[0]);
    const int16_t *x = (const int16_t *)rh_row_of(p, op->inputs[0], 0, 0) - in->inside;
    const range all = share(p, (int64_t)p->samples * in->size, RH_ALIGN);
    p->model->kernels->int_bytes(rh_bytes_of(p) + all.begin, x + all.begin, all.end - all.begin,
                                 rh_byte_offset(p->model, op));
}

void rh_run_conv2d(const part *p, const rh_op *op) {
    const rh_value *out = &p->model->values[op->output];
    const rh_layout *in = layout_of(p, op->inputs[0]);
    const int64_t input_size = op->bytes ? 1 : rh_number_size(p->model);
    const char *input = op->bytes ? (const char *)rh_bytes_of(p) + in->inside : rh_row_of(p, op->inputs[0], 0, 0);
    const conv c = {
        .op = op,
        .plan = &op->plan[p->subnet],
        .in = in,
        .out = layout_of(p, op->output),
        .residual_layout = op->residual < 0 ? NULL : layout_of(p, op->residual),
        .input = input - (op->padding[0] * in->pitch + op->padding[1] * in->stride) * input_size,
        .output = rh_row_of(p, op->output, 0, 0),
        .residual = op->residual < 0 ? NULL : rh_row_of(p, op->residual, 0, 0),
        .input_size = input_size,
        .size = rh_number_size(p->model),
        .height = out->height,
        .width = out->width,
    };
    if (op->depthwise) {
        run_depthwise(p, &c);
    } else {
        run_panels(p, &c);
    }
}
