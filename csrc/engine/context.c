/* Running a subnet: the arena, the split of work over threads and the loops around the kernels. Nothing here
 * allocates after rh_context_create. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "part.h"
#include "threads.h"

enum {
    RH_MAX_THREADS = 1024,
    RH_GROUP_MAX = 8,          /* samples that go through a layer together ... */
    RH_GROUP_FLOATS = 1 << 18, /* ... as long as their activations stay within a second-level cache */
    RH_WEIGHTS_NEAR = 1 << 16, /* floats of weights that stay there while pixels pass by */
    RH_MIN_WORK = 1 << 17,     /* multiply-adds worth a part: a microsecond of one thread */
    RH_MOVE_COST = 8,          /* a float moved costs about as much as this many multiply-adds */
};

/* What all threads need to know of a call. */
typedef struct {
    rh_context *context;
    int32_t subnet;
    int64_t batch;
    const float *input;
    float *const *outputs;
} call;

struct rh_context {
    rh_model *model;
    rh_team *team;
    int32_t threads;
    int32_t group; /* samples in a lane */
    int64_t lane;  /* floats */
    float *arena;  /* one lane a thread; pages of lanes that no batch needs are never touched */
    char *scratch; /* room to mask weights in, for each part of a step */
    int64_t scratches;
    void *memory;
    int64_t *work; /* per subnet: all ops, one sample */
    atomic_int active;
    pid_t process; /* threads do not survive a fork of the process */
};

/* The first pixel inside the border of the first sample. */
static float *data_of(const part *p, int32_t v) {
    return p->lane + p->model->values[v].offset * p->group + layout_of(p, v)->inside;
}

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
        .input = data_of(p, op->inputs[0]) - op->padding[0] * in->pitch - op->padding[1] * in->stride,
        .output = data_of(p, op->output),
        .residual = op->residual < 0 ? NULL : data_of(p, op->residual),
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
        const float *x = data_of(p, op->inputs[0]) + sample * from->size;
        float *y = data_of(p, op->output) + sample * to->size + oy * to->pitch;
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
            .input = data_of(p, op->inputs[0]) + sample * from->size + channel,
            .row_stride = from->pitch,
            .pixel_stride = from->stride,
            .rows = in->height,
            .columns = in->width,
        };
        p->model->kernels->f32_avg_pool2d(data_of(p, op->output) + sample * to->size + channel, &window,
                                          RH_LANES, (float)((int64_t)in->height * in->width));
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
        const float *x = data_of(p, op->inputs[0]) + sample * a->size + y * a->pitch;
        const float *z = data_of(p, second) + sample * b->size + (pixel ? 0 : y * b->pitch);
        float *out = data_of(p, op->output) + sample * to->size + y * to->pitch;
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
        float *y = data_of(p, op->output) + sample * to->size + row * to->pitch;
        int32_t channel = 0;
        for (int32_t i = 0; i < op->num_inputs; i++) {
            const rh_layout *from = layout_of(p, op->inputs[i]);
            const float *x = data_of(p, op->inputs[i]) + sample * from->size + row * sy * from->pitch;
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
        const float *x = data_of(p, op->inputs[0]) + sample * from->size + row * from->pitch;
        float *y = data_of(p, op->output) + sample * to->size + row * to->pitch;
        for (int64_t j = 0; j < value->width; j++)
            p->model->kernels->f32_softmax(y + j * to->stride, x + j * from->stride, to->channels);
    }
}

/* Other values used this memory before, so that the border is cleared in every run. */
static void clear_border(const part *p, int32_t v) {
    const rh_value *value = &p->model->values[v];
    if (value->border[0] + value->border[1] == 0) return;
    const rh_layout *layout = layout_of(p, v);
    const range all = share(p, p->samples, 1);
    for (int64_t s = all.begin; s < all.end; s++) {
        float *sample = data_of(p, v) - layout->inside + s * layout->size;
        const int64_t side = (int64_t)value->border[1] * layout->stride,
                      above = (int64_t)value->border[0] * layout->pitch;
        /* The right border of a row and the left one of the next are one stretch. */
        memset(sample, 0, (size_t)(above + side) * sizeof(float));
        for (int32_t y = 1; y < value->height; y++)
            memset(sample + above + y * (int64_t)layout->pitch - side, 0, (size_t)(2 * side) * sizeof(float));
        memset(sample + layout->size - above - side, 0, (size_t)(above + side) * sizeof(float));
    }
}

static void run_op(const part *p, const rh_op *op) {
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
    clear_border(p, op->output);
}

/* ---- the way in and out ---- */

static void read_input(const part *p, const float *input) {
    const rh_value *value = &p->model->values[0];
    const rh_layout *layout = layout_of(p, 0);
    const int64_t area = (int64_t)value->height * value->width;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = input + sample * layout->channels * area + row * value->width;
        float *y = data_of(p, 0) + sample * layout->size + row * layout->pitch;
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[j * layout->stride + c] = x[c * area + j];
        }
        for (int32_t c = layout->channels; c < layout->stride; c++) {
            for (int64_t j = 0; j < value->width; j++) y[j * layout->stride + c] = 0.0f;
        }
    }
    clear_border(p, 0);
}

static void write_output(const part *p, int32_t v, float *output) {
    const rh_value *value = &p->model->values[v];
    const rh_layout *layout = layout_of(p, v);
    const int64_t area = (int64_t)value->height * value->width;
    const range rows = share(p, (int64_t)p->samples * value->height, 1);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t sample = r / value->height, row = r % value->height;
        const float *x = data_of(p, v) + sample * layout->size + row * layout->pitch;
        float *y = output + sample * layout->channels * area + row * value->width;
        for (int32_t c = 0; c < layout->channels; c++) {
            for (int64_t j = 0; j < value->width; j++) y[c * area + j] = x[j * layout->stride + c];
        }
    }
}

/* ---- the run ---- */

/* One step of a group: reading the input (op NULL) or an op. */
typedef struct {
    part part;
    const rh_op *op;
    const float *input;
} step;

static void run_step(const void *argument, int32_t index) {
    const step *s = argument;
    part p = s->part;
    p.index = index;
    p.scratch += index * p.model->scratch;
    if (p.model->weight_bits != 0) {
        rh_quant_step(&p, s->op, s->input);
    } else if (s->op == NULL) {
        read_input(&p, s->input);
    } else {
        run_op(&p, s->op);
    }
}

/* How many parts a step is worth: twice as many as threads where it is large, so that a slow thread takes
 * fewer. */
static int32_t parts_of(const rh_context *context, const part *p, const rh_op *op) {
    const int64_t cost = op != NULL && op->kind == RH_CONV2D ? 1 : RH_MOVE_COST;
    const int64_t work = op == NULL ? layout_of(p, 0)->size : op->plan[p->subnet].work;
    if (work > INT64_MAX / cost / p->samples) return 2 * context->threads;
    const int64_t parts = min64(work * cost * p->samples / RH_MIN_WORK, 2 * context->threads);
    return parts < 2 ? 1 : (int32_t)parts;
}

/* `samples` samples from `first` on, in a lane; by one thread or by the whole team. */
static void run_group(const call *c, int64_t first, int32_t samples, int32_t lane, int together) {
    const rh_context *context = c->context;
    const rh_model *model = context->model;
    const rh_value *in = &model->values[0];
    step s = {
        .part = {model, context->arena + lane * context->lane, context->scratch + lane * model->scratch,
                 context->group, c->subnet, samples, 0, 1},
        .input = c->input + first * in->total * in->height * in->width,
    };
    for (int32_t i = -1; i < model->num_ops; i++) {
        s.op = i < 0 ? NULL : &model->ops[i];
        s.part.count = together ? parts_of(context, &s.part, s.op) : 1;
        if (s.part.count == 1) {
            run_step(&s, 0);
        } else {
            rh_team_run(context->team, s.part.count, run_step, &s);
        }
    }
    s.part.count = 1;
    for (int32_t i = 0; i < model->num_outputs; i++) {
        const rh_value *out = &model->values[model->outputs[i]];
        const int64_t size = (int64_t)out->layout[c->subnet].channels * out->height * out->width;
        if (model->weight_bits != 0) {
            rh_quant_output(&s.part, i, c->outputs[i] + first * size);
        } else {
            write_output(&s.part, model->outputs[i], c->outputs[i] + first * size);
        }
    }
}

static void run_samples(const call *c, int64_t begin, int64_t end, int32_t lane, int together) {
    for (int64_t i = begin; i < end; i += c->context->group)
        run_group(c, i, (int32_t)min64(c->context->group, end - i), lane, together);
}

/* One lane's share of the samples that divide evenly. */
static void run_lane(const void *argument, int32_t lane) {
    const call *c = argument;
    const int64_t each = c->batch / c->context->threads;
    run_samples(c, lane * each, (lane + 1) * each, lane, 0);
}

int32_t rh_run(rh_context *context, int64_t batch, const float *input, float *const *outputs) {
    if (context == NULL || batch < 0 || (batch > 0 && (input == NULL || outputs == NULL))) return RH_INVALID;
    const call c = {context, atomic_load(&context->active), batch, input, outputs};
    const int together = context->threads > 1 && context->process == getpid();
    int64_t done = 0;
    if (together && batch >= context->threads && context->work[c.subnet] > RH_MIN_WORK / batch) {
        rh_team_run(context->team, context->threads, run_lane, &c);
        done = batch / context->threads * context->threads;
    }
    run_samples(&c, done, batch, 0, together);
    return RH_OK;
}

int32_t rh_select(rh_context *context, int32_t subnet) {
    if (context == NULL || subnet < 0 || subnet >= context->model->num_subnets) return RH_INVALID;
    atomic_store_explicit(&context->active, subnet, memory_order_relaxed);
    return RH_OK;
}

int32_t rh_active(const rh_context *context) {
    return context == NULL ? -1 : atomic_load_explicit(&context->active, memory_order_relaxed);
}

int64_t rh_context_arena_bytes(const rh_context *context) {
    return context->lane * context->threads * (int64_t)sizeof(float) + context->scratches * context->model->scratch;
}

static int32_t fill(rh_context *context, rh_model *model, int32_t threads) {
    context->threads = threads;
    context->process = getpid();
    atomic_init(&context->active, model->num_subnets - 1);
    const int64_t fitting = model->arena > 0 ? RH_GROUP_FLOATS / model->arena : 1;
    context->group = (int32_t)(fitting < 1 ? 1 : min64(fitting, RH_GROUP_MAX));
    const int64_t numbers = model->arena * context->group;
    const int64_t floats = model->weight_bits != 0 ? (numbers + 1) / 2 : numbers; /* an int16_t is half a float */
    context->lane = (floats + RH_LANES - 1) / RH_LANES * RH_LANES + RH_LANES;
    context->scratches = threads == 1 ? 1 : 2 * threads; /* as many as parts_of makes */
    if (context->lane > INT64_MAX / 16 / threads || model->scratch > INT64_MAX / 4 / context->scratches)
        return RH_TOO_LARGE;
    context->work = calloc((size_t)model->num_subnets, sizeof(int64_t));
    context->memory = calloc((size_t)rh_context_arena_bytes(context) + RH_ALIGN, 1);
    if (context->work == NULL || context->memory == NULL) return RH_OUT_OF_MEMORY;
    context->arena = (float *)(((uintptr_t)context->memory + RH_ALIGN - 1) / RH_ALIGN * RH_ALIGN);
    context->scratch = (char *)(context->arena + context->lane * threads);
    for (int32_t k = 0; k < model->num_subnets; k++) {
        for (int32_t i = 0; i < model->num_ops; i++) context->work[k] += model->ops[i].plan[k].work;
    }
    return rh_team_create(threads, &context->team);
}

int32_t rh_context_create(rh_model *model, int32_t threads, rh_context **made) {
    *made = NULL;
    if (model == NULL || threads < 1 || threads > RH_MAX_THREADS) return RH_INVALID;
    rh_context *context = calloc(1, sizeof(rh_context));
    if (context == NULL) return RH_OUT_OF_MEMORY;
    rh_model_retain(model);
    context->model = model;
    const int32_t status = fill(context, model, threads);
    if (status != RH_OK) {
        rh_context_free(context);
        return status;
    }
    *made = context;
    return RH_OK;
}

void rh_context_free(rh_context *context) {
    if (context == NULL) return;
    /* In a forked process the team's threads do not exist and cannot be joined. */
    if (context->process == getpid()) rh_team_free(context->team);
    rh_model_release(context->model);
    free(context->work);
    free(context->memory);
    free(context);
}
