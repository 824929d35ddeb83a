/* Every case, subnet, batch size and number of threads against the reference; then what must be refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "cases.h"

static int failures;

static void check(int ok, const char *what, const char *where) {
    if (ok) return;
    failures++;
    printf("FAILED %s: %s\n", where, what);
}

enum { LARGEST_BATCH = 7 };

/* Inputs of the largest batch and what each subnet makes of them. */
typedef struct {
    const test_model *m;
    const char *name;
    float *x;
    double *want[SUBNETS][2];
} expected;

static expected expect(const test_model *m, const char *name) {
    expected e = {.m = m, .name = name};
    uint64_t seed = 7;
    const int64_t in = value_size(m, 0, 0);
    e.x = malloc((size_t)(in * LARGEST_BATCH) * sizeof(float));
    for (int64_t i = 0; i < in * LARGEST_BATCH; i++) e.x[i] = 2 * random_float(&seed);
    for (int32_t k = 0; k < SUBNETS; k++) {
        for (int o = 0; o < m->desc.num_outputs; o++) {
            const int64_t out = value_size(m, m->outputs[o], k);
            e.want[k][o] = malloc((size_t)(out * LARGEST_BATCH) * sizeof(double));
            for (int n = 0; n < LARGEST_BATCH; n++) reference(m, k, o, e.x + n * in, e.want[k][o] + n * out);
        }
    }
    return e;
}

static void forget(expected *e) {
    free(e->x);
    for (int32_t k = 0; k < SUBNETS; k++) {
        for (int o = 0; o < e->m->desc.num_outputs; o++) free(e->want[k][o]);
    }
}

static double worst_error(const double *want, const float *got, int64_t batch, int64_t size) {
    double worst = 0;
    for (int64_t n = 0; n < batch; n++, want += size, got += size) {
        double largest = 1e-30, error = 0;
        for (int64_t i = 0; i < size; i++) {
            largest = fmax(largest, fabs(want[i]));
            const double d = fabs(want[i] - (double)got[i]);
            error = d <= error ? error : d; /* a NaN is an error */
        }
        worst = error / largest <= worst ? worst : error / largest;
    }
    return worst;
}

static void compare(const expected *e, rh_context *context, int32_t k, int64_t batch) {
    const test_model *m = e->m;
    float *y[2] = {NULL, NULL};
    int64_t size[2] = {0, 0};
    for (int o = 0; o < m->desc.num_outputs; o++) {
        size[o] = value_size(m, m->outputs[o], k);
        y[o] = malloc((size_t)(size[o] * batch) * sizeof(float));
    }
    check(rh_select(context, k) == RH_OK, "select", e->name);
    check(rh_run(context, batch, e->x, y) == RH_OK, "run", e->name);
    for (int o = 0; o < m->desc.num_outputs; o++) {
        const double error = worst_error(e->want[k][o], y[o], batch, size[o]);
        if (!(error < 2e-6)) {
            failures++;
            printf("FAILED %s: subnet %d, batch %d, output %d: relative error %.3g\n", e->name, k, (int)batch,
                   o, error);
        }
        free(y[o]);
    }
}

static void test_agreement(int index, int leveled) {
    static const int64_t batches[] = {1, 2, LARGEST_BATCH};
    test_model *m = case_build(index, leveled);
    const char *name = cases[index].name;
    rh_model *model;
    int32_t failed;
    const int32_t status = rh_model_build(&m->desc, &model, &failed);
    if (status != RH_OK) {
        failures++;
        printf("FAILED %s: build: %s (op %d)\n", name, rh_status_text(status), failed);
        case_free(m);
        return;
    }
    expected e = expect(m, name);
    for (int32_t threads = 1; threads <= 3; threads++) {
        rh_context *context;
        check(rh_context_create(model, threads, &context) == RH_OK, "create", name);
        check(rh_active(context) == SUBNETS - 1, "the largest subnet is active first", name);
        /* Largest first, so that the smaller ones find its leftovers in the arena. */
        for (int32_t k = SUBNETS - 1; k >= 0; k--) {
            for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++)
                compare(&e, context, k, batches[b]);
        }
        rh_context_free(context);
    }
    forget(&e);
    rh_model_release(model);
    case_free(m);
}

/* NaN and infinities reach the output as in PyTorch: through ReLU, clamps, pools and sums. */
static void test_nan(void) {
    for (int i = 0; i < num_cases; i++) {
        const char *name = cases[i].name;
        test_model *m = case_build(i, i % 2);
        rh_model *model;
        rh_context *context;
        int32_t failed;
        check(rh_model_build(&m->desc, &model, &failed) == RH_OK, "build", name);
        check(rh_context_create(model, 1, &context) == RH_OK, "create", name);
        const int64_t in = value_size(m, 0, 0);
        float *x = calloc((size_t)in, sizeof(float)), *y[2];
        for (int o = 0; o < 2; o++) y[o] = malloc((size_t)value_size(m, m->outputs[o], 2) * sizeof(float));
        for (int64_t j = 0; j < in; j++) x[j] = NAN;
        rh_run(context, 1, x, y);
        check(isnan(y[0][0]), "NaN in, NaN out", name);
        for (int64_t j = 0; j < in; j++) x[j] = 0.25f;
        rh_run(context, 1, x, y);
        check(!isnan(y[0][0]), "no NaN stays behind", name);
        free(x);
        free(y[0]);
        free(y[1]);
        rh_context_free(context);
        rh_model_release(model);
        case_free(m);
    }
}

static int64_t arena_bytes(rh_model *model, int32_t threads) {
    rh_context *context;
    if (rh_context_create(model, threads, &context) != RH_OK) return -1;
    const int64_t bytes = rh_context_arena_bytes(context);
    rh_context_free(context);
    return bytes;
}

/* Levels take a byte a packed weight, once, and each part of a step some room; none where all subnets use the same. */
static void test_memory(void) {
    for (int i = 0; i < num_cases; i++) {
        test_model *m = case_build(i, 1);
        rh_model *dense, *leveled, *alike;
        int32_t failed;
        check(rh_model_build(&m->desc, &leveled, &failed) == RH_OK, "build", "memory");
        for (int o = 0; o < m->desc.num_ops; o++) {
            for (int64_t w = 0; m->levels[o] != NULL && w < m->ops[o].weight_count; w++) {
                if (m->levels[o][w] < SUBNETS) m->levels[o][w] = 0;
            }
        }
        check(rh_model_build(&m->desc, &alike, &failed) == RH_OK, "build", "memory");
        int64_t numbers = 0;
        for (int o = 0; o < m->desc.num_ops; o++) {
            numbers += m->ops[o].levels == NULL ? 0 : m->ops[o].weight_count;
            m->ops[o].levels = NULL;
        }
        check(rh_model_build(&m->desc, &dense, &failed) == RH_OK, "build", "memory");
        const int64_t more = rh_model_weight_bytes(leveled) - rh_model_weight_bytes(dense);
        check(more >= numbers && (numbers == 0) == (more == 0), "a byte for each packed weight", cases[i].name);
        check(rh_model_weight_bytes(leveled) == rh_model_weight_bytes(alike), "the same panels", cases[i].name);
        for (int32_t threads = 1; threads <= 3; threads++) {
            const int64_t plain = arena_bytes(dense, threads), room = arena_bytes(leveled, threads) - plain;
            const int64_t parts = threads == 1 ? 1 : 2 * threads;
            check((room == 0) == (numbers == 0), "room to mask in", cases[i].name);
            check(room <= parts * 4 * more, "no more than the packed weights for each part", cases[i].name);
            check(arena_bytes(alike, threads) == plain, "no room where nothing is masked", cases[i].name);
        }
        rh_model_release(dense);
        rh_model_release(leveled);
        rh_model_release(alike);
        case_free(m);
    }
}

static void test_refusals(void) {
    test_model *m = case_build(0, 0);
    rh_model *model;
    rh_context *context;
    int32_t failed;
    check(rh_model_build(&m->desc, &model, &failed) == RH_OK, "build", "refusals");
    check(rh_context_create(model, 0, &context) == RH_INVALID && context == NULL, "no threads", "refusals");
    check(rh_context_create(NULL, 1, &context) == RH_INVALID, "no model", "refusals");
    check(rh_context_create(model, 2, &context) == RH_OK, "create", "refusals");
    rh_model_release(model); /* the context keeps it */
    check(rh_select(context, 1) == RH_OK, "select", "refusals");
    check(rh_select(context, SUBNETS) == RH_INVALID && rh_select(context, -1) == RH_INVALID, "select range",
          "refusals");
    check(rh_active(context) == 1, "a refused select changes nothing", "refusals");
    check(rh_context_arena_bytes(context) > 0, "the arena has a size", "refusals");
    check(rh_run(context, -1, NULL, NULL) == RH_INVALID, "negative batch", "refusals");
    check(rh_run(context, 1, NULL, NULL) == RH_INVALID, "no input", "refusals");
    check(rh_run(context, 0, NULL, NULL) == RH_OK, "an empty batch", "refusals");
    rh_context_free(context);
    rh_context_free(NULL);
    rh_model_release(NULL);
    m->ops[0].weight_count--;
    check(rh_model_build(&m->desc, &model, &failed) == RH_INVALID && model == NULL && failed == 0, "weights",
          "refusals");
    m->ops[0].weight_count++;
    m->ops[0].kind = 99;
    check(rh_model_build(&m->desc, &model, &failed) == RH_UNSUPPORTED && failed == 0, "kind", "refusals");
    m->ops[0].kind = RH_CONV2D;
    m->values[1].height = INT32_MAX;
    check(rh_model_build(&m->desc, &model, &failed) == RH_TOO_LARGE, "too large", "refusals");
    m->values[1].height = 10;
    check(rh_model_build(&m->desc, &model, &failed) == RH_INVALID && failed == 0, "shape", "refusals");
    case_free(m);
    /* a border so wide that its size overflows 64 bits */
    const int32_t one = 1, far = INT32_MAX;
    const float weight = 1;
    const int32_t inputs[1] = {0}, outputs[1] = {1};
    const rh_value_desc values[2] = {{&one, &one, 1, 5, 1, 0, 0}, {&one, &one, 1, 3, 1, 0, 0}};
    rh_op_desc conv = {0};
    conv.kind = RH_CONV2D;
    conv.inputs = inputs;
    conv.num_inputs = 1;
    conv.output = 1;
    conv.residual = -1;
    conv.group_inputs = 1;
    conv.weight = &weight;
    conv.weight_count = 1;
    for (int d = 0; d < 2; d++) {
        conv.kernel[d] = conv.dilation[d] = 1;
        conv.stride[d] = far;
        conv.padding[d] = d == 0 ? far : far / 2;
    }
    const rh_model_desc wide = {.values = values, .ops = &conv, .outputs = outputs,
                                .num_values = 2, .num_ops = 1, .num_outputs = 1, .num_subnets = 1};
    check(rh_model_build(&wide, &model, &failed) == RH_TOO_LARGE, "a border too wide", "refusals");
}

/* Two values of one pixel, of two segments of which two subnets keep as many as `kept` says, and a convolution of one
 * input in each group. */
static int32_t build_grouped(const int32_t *ins, const int32_t *outs, const int32_t *kept, const float *weight,
                             const uint8_t *levels, rh_model **model) {
    const rh_value_desc values[2] = {{ins, kept, 2, 1, 1, 0, 0}, {outs, kept, 2, 1, 1, 0, 0}};
    rh_op_desc op = pointwise(1, (int64_t)outs[0] + outs[1]);
    op.weight = weight;
    op.levels = levels;
    const rh_model_desc desc = model_of_two(values, &op, 2);
    int32_t failed;
    return rh_model_build(&desc, model, &failed);
}

/* Each of 2^27 groups would begin a panel: more channels than an int32 counts. */
static void test_many_groups(void) {
    const int32_t ins[2] = {1 << 26, 1 << 26}, outs[2] = {1 << 27, 1 << 27};
    const int32_t kept[4] = {1 << 26, 1 << 26, 1 << 26, 1 << 26};
    const float none = 0;
    rh_model *model;
    check(build_grouped(ins, outs, kept, &none, NULL, &model) == RH_TOO_LARGE, "too many panels", "many groups");
}

/* A depthwise convolution whose smaller subnet keeps nothing of the first segment. */
static void test_begins_behind(void) {
    const int32_t full[2] = {1, 31}, kept[4] = {0, 17, 1, 31};
    float weight[32], x[31], y[31], *out = y;
    uint8_t levels[32];
    for (int c = 0; c < 32; c++) {
        weight[c] = (float)c;
        levels[c] = (uint8_t)(c % 2);
    }
    for (int c = 0; c < 31; c++) x[c] = (float)(c + 1);
    for (int leveled = 0; leveled <= 1; leveled++) {
        rh_model *model;
        rh_context *context;
        const int32_t status = build_grouped(full, full, kept, weight, leveled ? levels : NULL, &model);
        check(status == RH_OK && rh_context_create(model, 1, &context) == RH_OK, "build", "begins behind");
        check(rh_select(context, 0) == RH_OK && rh_run(context, 1, x, &out) == RH_OK, "run", "begins behind");
        for (int c = 0; c < 17; c++) {
            const float want = leveled && (c + 1) % 2 ? 0 : x[c] * weight[c + 1];
            check(y[c] == want, "a product", "begins behind");
        }
        rh_context_free(context);
        rh_model_release(model);
    }
}

static int32_t *random_field(test_model *m, uint64_t *seed) {
    const int32_t v = (int32_t)(fabsf(random_float(seed)) * (float)m->desc.num_values);
    const int32_t i = (int32_t)(fabsf(random_float(seed)) * (float)m->desc.num_ops);
    rh_op_desc *o = &m->ops[i];
    int32_t *fields[] = {&o->kind,
                         &o->activation,
                         &o->output,
                         &o->residual,
                         &o->kernel[0],
                         &o->kernel[1],
                         &o->stride[0],
                         &o->stride[1],
                         &o->padding[0],
                         &o->padding[1],
                         &o->dilation[0],
                         &o->dilation[1],
                         &o->group_inputs,
                         &o->num_inputs,
                         &m->inputs[i][0],
                         &m->inputs[i][1],
                         &m->outputs[0],
                         &m->full[v][0],
                         &m->kept[v][0],
                         &m->kept[v][1],
                         &m->values[v].height,
                         &m->values[v].width,
                         &o->count_include_pad};
    const int count = sizeof fields / sizeof fields[0];
    return fields[(int)(fabsf(random_float(seed)) * (float)count) % count];
}

/* Random damage: a build that succeeds must also run. The sanitizers watch. */
static void test_damage(int rounds, uint64_t seed) {
    static const int32_t numbers[] = {-1, 0, 1, 2, 3, 4, 5, 8, 16, 20, 40, 64, 1 << 20, INT32_MAX, INT32_MIN};
    int built = 0, runs = 0;
    for (int round = 0; round < rounds; round++) {
        test_model *m = case_build(round % (num_cases - 1), round % 2);
        const int damages = 1 + round % 3;
        for (int d = 0; d < damages; d++) {
            int32_t *field = random_field(m, &seed);
            const int32_t number = numbers[(int)(fabsf(random_float(&seed)) * 15) % 15];
            int32_t *inputs_of = NULL;
            for (int i = 0; i < m->desc.num_ops; i++) {
                if (field == &m->ops[i].num_inputs) inputs_of = field;
            }
            *field = inputs_of != NULL && number > 4 ? 4 : number; /* as many as there is memory for */
        }
        rh_model *model;
        rh_context *context;
        int32_t failed;
        if (rh_model_build(&m->desc, &model, &failed) == RH_OK) {
            built++;
            int64_t sizes = value_size(m, 0, 2);
            for (int v = 0; v < m->desc.num_values; v++) sizes += value_size(m, v, 2);
            if (sizes < 1 << 22 && rh_context_create(model, 2, &context) == RH_OK) {
                float *x = calloc((size_t)value_size(m, 0, 2), sizeof(float)), *y[2];
                for (int o = 0; o < 2; o++)
                    y[o] = calloc((size_t)value_size(m, m->outputs[o], 2), sizeof(float));
                for (int32_t k = 0; k < SUBNETS; k++) {
                    rh_select(context, k);
                    runs += rh_run(context, 1, x, y) == RH_OK;
                }
                free(x);
                free(y[0]);
                free(y[1]);
                rh_context_free(context);
            }
            rh_model_release(model);
        }
        case_free(m);
    }
    check(runs > rounds / 20, "some of the damaged models run", "damage");
    printf("damage: %d of %d built, %d runs\n", built, rounds, runs);
}

/* test_ops [rounds of damage [seed]] */
int main(int argc, char **argv) {
    for (int i = 0; i < num_cases; i++) {
        test_agreement(i, 0);
        test_agreement(i, 1);
    }
    test_nan();
    test_memory();
    test_refusals();
    test_many_groups();
    test_begins_behind();
    test_damage(argc > 1 ? atoi(argv[1]) : 4000, argc > 2 ? (uint64_t)atoi(argv[2]) : 11);
    printf("%d failures\n", failures);
    return failures != 0;
}
