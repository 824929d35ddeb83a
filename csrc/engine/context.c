/* Running a subnet: the arena and the split of work over threads. Nothing here allocates after rh_context_create. */
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
    int64_t lane;  /* bytes */
    char *arena;   /* one lane a thread; pages of lanes that no batch needs are never touched */
    char *scratch; /* room to mask weights in, for each part of a step */
    int64_t scratches;
    void *memory;
    int64_t *work; /* per subnet: all ops, one sample */
    atomic_int active;
    pid_t process; /* threads do not survive a fork of the process */
};

/* One step of a group: reading the input (op NULL) or an op. */
typedef struct {
    part part;
    const rh_op *op;
    const float *input;
    int bytes; /* not the op, but making its inputs bytes before it */
} step;

/* Other values used this memory before, so that the border is cleared in every run. */
static void clear_border(const part *p, int32_t v) {
    const rh_value *value = &p->model->values[v];
    if (value->border[0] + value->border[1] == 0) return;
    const rh_layout *layout = layout_of(p, v);
    const int64_t number = rh_number_size(p->model);
    const int64_t size = layout->size * number, pitch = layout->pitch * number;
    const int64_t side = (int64_t)value->border[1] * layout->stride * number, above = value->border[0] * pitch;
    const range all = share(p, p->samples, 1);
    for (int64_t s = all.begin; s < all.end; s++) {
        char *sample = (char *)rh_row_of(p, v, s, 0) - layout->inside * number;
        /* The right border of a row and the left one of the next are one stretch. */
        memset(sample, 0, (size_t)(above + side));
        for (int32_t y = 1; y < value->height; y++) memset(sample + above + y * pitch - side, 0, (size_t)(2 * side));
        memset(sample + size - above - side, 0, (size_t)(above + side));
    }
}

static void run_step(const void *argument, int32_t index) {
    const step *s = argument;
    part p = s->part;
    p.index = index;
    p.scratch += index * p.model->scratch;
    if (s->bytes) {
        rh_make_bytes(&p, s->op);
        return;
    }
    (p.model->weight_bits == 0 ? rh_float_step : rh_quant_step)(&p, s->op, s->input);
    clear_border(&p, s->op == NULL ? 0 : s->op->output);
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
        for (s.bytes = s.op != NULL && s.op->bytes; s.bytes >= 0; s.bytes--) {
            if (s.part.count == 1) {
                run_step(&s, 0);
            } else {
                rh_team_run(context->team, s.part.count, run_step, &s);
            }
        }
    }
    s.part.count = 1;
    for (int32_t i = 0; i < model->num_outputs; i++) {
        const rh_value *out = &model->values[model->outputs[i]];
        const int64_t size = (int64_t)out->layout[c->subnet].channels * out->height * out->width;
        (model->weight_bits == 0 ? rh_float_output : rh_quant_output)(&s.part, i, c->outputs[i] + first * size);
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
    return context->lane * context->threads + context->scratches * context->model->scratch;
}

static int32_t fill(rh_context *context, rh_model *model, int32_t threads) {
    context->threads = threads;
    context->process = getpid();
    atomic_init(&context->active, model->num_subnets - 1);
    const int64_t fitting = model->arena > 0 ? RH_GROUP_FLOATS / model->arena : 1;
    context->group = (int32_t)(fitting < 1 ? 1 : min64(fitting, RH_GROUP_MAX));
    const int64_t sample = model->arena * rh_number_size(model) + model->bytes;
    context->lane = (sample * context->group + RH_ALIGN - 1) / RH_ALIGN * RH_ALIGN + RH_ALIGN;
    context->scratches = threads == 1 ? 1 : 2 * threads; /* as many as parts_of makes */
    if (context->lane > INT64_MAX / 4 / threads || model->scratch > INT64_MAX / 4 / context->scratches)
        return RH_TOO_LARGE;
    context->work = calloc((size_t)model->num_subnets, sizeof(int64_t));
    context->memory = calloc((size_t)rh_context_arena_bytes(context) + RH_ALIGN, 1);
    if (context->work == NULL || context->memory == NULL) return RH_OUT_OF_MEMORY;
    context->arena = (char *)(((uintptr_t)context->memory + RH_ALIGN - 1) / RH_ALIGN * RH_ALIGN);
    context->scratch = context->arena + context->lane * threads;
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
