#include "cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float random_float(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) / 2147483648.0f;
}

/* ---- building ---- */

static uint64_t seed = 1;

/* Segments as full, then kept for each subnet, ended by full = 0. */
static int32_t value(test_model *m, int32_t height, int32_t width, const int32_t (*segments)[1 + SUBNETS]) {
    const int32_t v = m->desc.num_values++;
    int32_t n = 0;
    while (segments[n][0] > 0) n++;
    for (int32_t s = 0; s < n; s++) {
        m->full[v][s] = segments[s][0];
        for (int32_t k = 0; k < SUBNETS; k++) m->kept[v][k * n + s] = segments[s][1 + k];
    }
    m->values[v] = (rh_value_desc){
        .full = m->full[v], .kept = m->kept[v], .num_segments = n, .height = height, .width = width};
    return v;
}

#define SEGMENTS(...) ((const int32_t[][1 + SUBNETS]){__VA_ARGS__, {0, 0, 0, 0}})
#define WHOLE(n) SEGMENTS({n, n, n, n})

static rh_op_desc *op(test_model *m, int32_t kind, int32_t input, int32_t output, int32_t activation) {
    const int32_t i = m->desc.num_ops++;
    m->inputs[i][0] = input;
    m->ops[i] = (rh_op_desc){.kind = kind,
                             .activation = activation,
                             .inputs = m->inputs[i],
                             .num_inputs = 1,
                             .output = output,
                             .residual = -1,
                             .kernel = {1, 1},
                             .stride = {1, 1},
                             .dilation = {1, 1}};
    m->outputs[0] = output;
    return &m->ops[i];
}

static void epilogue(test_model *m, rh_op_desc *o) {
    const int64_t i = o - m->ops;
    for (int k = 0; k < SUBNETS; k++) {
        m->scale_pointers[i][k] = &m->numbers[2 * (i * SUBNETS + k)];
        m->shift_pointers[i][k] = &m->numbers[2 * (i * SUBNETS + k) + 1];
    }
    o->scale = m->scale_pointers[i];
    o->shift = m->shift_pointers[i];
}

static void window(rh_op_desc *o, int32_t kernel, int32_t stride, int32_t padding) {
    for (int d = 0; d < 2; d++) {
        o->kernel[d] = kernel;
        o->stride[d] = stride;
        o->padding[d] = padding;
    }
}

static int32_t total(const test_model *m, int32_t v) {
    int32_t sum = 0;
    for (int32_t s = 0; s < m->values[v].num_segments; s++) sum += m->full[v][s];
    return sum;
}

/* Draws the weights, once the kernel is set. */
static void weigh(test_model *m, rh_op_desc *o, int32_t groups) {
    const int32_t v = o->inputs[0];
    o->group_inputs = total(m, v) / groups;
    o->weight_count = (int64_t)total(m, o->output) * o->group_inputs * o->kernel[0] * o->kernel[1];
    float *w = malloc((size_t)o->weight_count * sizeof(float));
    /* Outputs about as large as inputs, as in a trained network. */
    const float size = sqrtf(3.0f / (float)(o->group_inputs * o->kernel[0] * o->kernel[1]));
    for (int64_t i = 0; i < o->weight_count; i++) w[i] = size * random_float(&seed);
    m->weights[o - m->ops] = w;
    o->weight = w;
}

/* A third of the weights for each of the smaller subnets, the rest for the largest or for none. */
static void draw_levels(test_model *m, rh_op_desc *o) {
    uint8_t *levels = malloc((size_t)o->weight_count);
    for (int64_t i = 0; i < o->weight_count; i++) {
        const float u = 1.5f * (1.0f + random_float(&seed));
        levels[i] = u < 2.75f ? (uint8_t)u : i % 2 ? SUBNETS : 255;
    }
    m->levels[o - m->ops] = levels;
    o->levels = levels;
}

static rh_op_desc *conv(test_model *m, int32_t input, int32_t output, int32_t kernel, int32_t stride,
                        int32_t padding, int32_t groups, int32_t activation) {
    rh_op_desc *o = op(m, RH_CONV2D, input, output, activation);
    window(o, kernel, stride, padding);
    weigh(m, o, groups);
    epilogue(m, o);
    return o;
}

static rh_op_desc *pair(test_model *m, int32_t kind, int32_t a, int32_t b, int32_t output,
                        int32_t activation) {
    rh_op_desc *o = op(m, kind, a, output, activation);
    m->inputs[o - m->ops][1] = b;
    o->num_inputs = 2;
    return o;
}

#define NARROW SEGMENTS({20, 5, 16, 20})
#define WIDE SEGMENTS({40, 10, 33, 40})
#define SPLIT SEGMENTS({20, 5, 16, 20}, {7, 3, 7, 7}, {24, 6, 17, 24})

static void conv_stem(test_model *m) {
    value(m, 9, 11, WHOLE(3));
    value(m, 9, 11, NARROW);
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
}

static void conv_stem_7x7(test_model *m) {
    value(m, 23, 19, WHOLE(3));
    value(m, 12, 10, WIDE);
    conv(m, 0, 1, 7, 2, 3, 1, RH_RELU6);
}

static void conv_chain(test_model *m) {
    value(m, 8, 8, WHOLE(3));
    value(m, 8, 8, NARROW);
    value(m, 4, 4, WIDE);
    value(m, 4, 4, WIDE);
    value(m, 2, 2, NARROW);
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
    conv(m, 1, 2, 3, 2, 1, 1, RH_HARDSWISH);
    conv(m, 2, 3, 1, 1, 0, 1, RH_NONE)->residual = 2;
    m->ops[2].activation = RH_RELU;
    rh_op_desc *o = conv(m, 3, 4, 2, 1, 0, 1, RH_SILU);
    o->dilation[0] = o->dilation[1] = 2;
}

static void conv_rectangular(test_model *m) {
    value(m, 6, 13, WHOLE(2));
    value(m, 8, 6, NARROW);
    value(m, 8, 6, NARROW);
    rh_op_desc *o = op(m, RH_CONV2D, 0, 1, RH_NONE);
    o->kernel[0] = 1, o->kernel[1] = 5;
    o->stride[1] = 2;
    o->padding[0] = 1, o->padding[1] = 1;
    weigh(m, o, 1); /* no scale, no shift */
    conv(m, 1, 2, 3, 1, 1, 1, RH_TANH);
}

static void linear_layers(test_model *m) {
    value(m, 1, 1, WHOLE(37));
    value(m, 1, 1, WIDE);
    value(m, 1, 1, WIDE);
    value(m, 1, 1, WHOLE(10));
    conv(m, 0, 1, 1, 1, 0, 1, RH_RELU);
    conv(m, 1, 2, 1, 1, 0, 1, RH_GELU)->residual = 1;
    conv(m, 2, 3, 1, 1, 0, 1, RH_NONE);
}

static void linear_flatten(test_model *m) {
    value(m, 7, 5, WHOLE(3));
    value(m, 7, 5, NARROW);
    value(m, 1, 1, WIDE);
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
    rh_op_desc *o = op(m, RH_CONV2D, 1, 2, RH_SIGMOID);
    o->kernel[0] = 7, o->kernel[1] = 5;
    weigh(m, o, 1);
    epilogue(m, o);
}

static void segments(test_model *m) {
    value(m, 5, 6, WHOLE(3));
    value(m, 5, 6, NARROW);
    value(m, 5, 6, SEGMENTS({7, 3, 7, 7}));
    value(m, 5, 6, SEGMENTS({24, 6, 17, 24}));
    value(m, 5, 6, SPLIT);
    value(m, 3, 3, WIDE);
    value(m, 5, 6, SPLIT);
    value(m, 5, 6, SPLIT);
    value(m, 5, 6, SPLIT);
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
    conv(m, 0, 2, 1, 1, 0, 1, RH_NONE);
    conv(m, 1, 3, 3, 1, 1, 1, RH_RELU);
    rh_op_desc *o = op(m, RH_CONCAT, 1, 4, RH_NONE);
    o->num_inputs = 3;
    m->inputs[o - m->ops][1] = 2;
    m->inputs[o - m->ops][2] = 3;
    conv(m, 4, 5, 3, 2, 1, 1, RH_RELU);                /* segments in */
    conv(m, 4, 6, 1, 1, 0, 1, RH_HARDSIGMOID);         /* in and out */
    conv(m, 6, 7, 3, 1, 1, 51, RH_RELU)->residual = 4; /* depthwise */
    epilogue(m, op(m, RH_SCALE, 7, 8, RH_RELU));
    m->outputs[1] = 5;
    m->desc.num_outputs = 2;
}

static void depthwise(test_model *m) {
    value(m, 9, 8, WHOLE(3));
    value(m, 9, 8, WIDE);
    value(m, 5, 4, WIDE);
    value(m, 5, 4, WIDE);
    conv(m, 0, 1, 1, 1, 0, 1, RH_RELU6);
    conv(m, 1, 2, 3, 2, 1, 40, RH_HARDSWISH);
    conv(m, 2, 3, 5, 1, 2, 40, RH_RELU)->residual = 2;
}

static void depthwise_input(test_model *m) {
    value(m, 6, 6, WHOLE(3));
    value(m, 6, 6, WHOLE(3));
    value(m, 6, 6, SEGMENTS({6, 6, 6, 6}));
    conv(m, 0, 1, 3, 1, 1, 3, RH_NONE)->residual = 0;
    conv(m, 1, 2, 3, 1, 1, 3, RH_RELU); /* two outputs a group */
}

static void grouped_whole(test_model *m) {
    value(m, 5, 5, WHOLE(3));
    value(m, 5, 5, SEGMENTS({32, 8, 16, 32}));
    value(m, 5, 5, SEGMENTS({96, 24, 48, 96}));
    value(m, 5, 5, SEGMENTS({32, 8, 16, 32}));
    conv(m, 0, 1, 1, 1, 0, 1, RH_RELU);
    conv(m, 1, 2, 3, 1, 1, 8, RH_RELU);
    conv(m, 2, 3, 3, 1, 1, 8, RH_NONE)->residual = 1;
}

static void grouped_prefix(test_model *m) {
    value(m, 5, 5, WHOLE(6));
    value(m, 5, 5, SEGMENTS({20, 5, 16, 20}, {20, 5, 16, 20}));
    value(m, 5, 5, SEGMENTS({36, 9, 18, 36}, {36, 9, 18, 36}));
    value(m, 5, 5, WHOLE(8));
    conv(m, 0, 1, 3, 1, 1, 2, RH_RELU);
    conv(m, 1, 2, 3, 1, 1, 2, RH_RELU);
    conv(m, 2, 3, 1, 1, 0, 2, RH_NONE);
}

/* Segments within groups: two groups read and write by one convolution, six by the next. */
static void grouped_segments(test_model *m) {
    value(m, 5, 5, WHOLE(12));
    value(m, 5, 5, SEGMENTS({6, 2, 3, 6}, {6, 2, 3, 6}));
    value(m, 5, 5,
          SEGMENTS({4, 1, 3, 4}, {4, 1, 3, 4}, {4, 1, 3, 4}, {4, 1, 3, 4}, {4, 1, 3, 4}, {4, 1, 3, 4}));
    value(m, 5, 5, SEGMENTS({30, 10, 20, 30}, {30, 10, 20, 30}, {30, 10, 20, 30}));
    conv(m, 0, 1, 1, 1, 0, 1, RH_RELU);
    conv(m, 1, 2, 3, 1, 1, 2, RH_RELU);
    conv(m, 2, 3, 3, 1, 1, 3, RH_NONE);
}

static void pools(test_model *m) {
    value(m, 11, 9, WHOLE(3));
    value(m, 11, 9, NARROW);
    value(m, 6, 5, NARROW);
    value(m, 3, 2, NARROW);
    value(m, 3, 3, NARROW);
    value(m, 1, 1, NARROW);
    conv(m, 0, 1, 3, 1, 1, 1, RH_NONE);
    window(op(m, RH_MAX_POOL2D, 1, 2, RH_NONE), 3, 2, 1);
    window(op(m, RH_AVG_POOL2D, 2, 3, RH_NONE), 2, 2, 0);
    rh_op_desc *o = op(m, RH_AVG_POOL2D, 2, 4, RH_NONE); /* 6 x 5, rounded up to 4 x 3 less one row */
    window(o, 3, 2, 0);
    o->count_include_pad = 1;
    m->values[4].height = 3;
    m->values[4].width = 2;
    op(m, RH_GLOBAL_AVG_POOL, 1, 5, RH_NONE);
    m->outputs[0] = 3;
    m->outputs[1] = 5;
    m->desc.num_outputs = 2;
}

static void pools_ceil(test_model *m) {
    value(m, 6, 7, WHOLE(20));
    value(m, 4, 4, WHOLE(20));
    value(m, 4, 4, WHOLE(20));
    value(m, 4, 4, WHOLE(20));
    value(m, 3, 3, WHOLE(20));
    value(m, 4, 4, WHOLE(20));
    window(op(m, RH_MAX_POOL2D, 0, 1, RH_NONE), 3, 2, 1);
    rh_op_desc *o = op(m, RH_AVG_POOL2D, 0, 2, RH_NONE);
    window(o, 3, 2, 1);
    o->count_include_pad = 1;
    window(op(m, RH_AVG_POOL2D, 0, 3, RH_NONE), 3, 2, 1);
    window(op(m, RH_AVG_POOL2D, 0, 4, RH_NONE), 2, 3, 1);
    pair(m, RH_ADD, 2, 3, 5, RH_NONE);
    m->outputs[1] = 4;
    m->desc.num_outputs = 2;
}

static void squeeze_excite(test_model *m) {
    value(m, 7, 6, WHOLE(3));
    value(m, 7, 6, WIDE);
    value(m, 1, 1, WIDE);
    value(m, 1, 1, SEGMENTS({8, 2, 4, 8}));
    value(m, 1, 1, WIDE);
    value(m, 7, 6, WIDE);
    value(m, 7, 6, WIDE);
    value(m, 7, 6, WIDE);
    conv(m, 0, 1, 3, 1, 1, 1, RH_SILU);
    op(m, RH_GLOBAL_AVG_POOL, 1, 2, RH_NONE);
    conv(m, 2, 3, 1, 1, 0, 1, RH_RELU);
    conv(m, 3, 4, 1, 1, 0, 1, RH_HARDSIGMOID);
    pair(m, RH_MUL, 1, 4, 5, RH_NONE);
    pair(m, RH_MUL, 5, 1, 6, RH_RELU);
    pair(m, RH_ADD, 6, 1, 7, RH_GELU_TANH);
}

static void shortcut(test_model *m) {
    value(m, 8, 8, WHOLE(3));
    value(m, 8, 8, NARROW);
    value(m, 4, 4, NARROW);
    value(m, 4, 4, WIDE);
    value(m, 4, 4, WIDE);
    value(m, 1, 1, WIDE);
    value(m, 1, 1, WIDE);
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
    rh_op_desc *o = op(m, RH_SUBSAMPLE, 1, 2, RH_NONE);
    o->stride[0] = o->stride[1] = 2;
    op(m, RH_PAD_CHANNELS, 2, 3, RH_NONE);
    conv(m, 1, 4, 3, 2, 1, 1, RH_RELU)->residual = 3;
    op(m, RH_GLOBAL_AVG_POOL, 4, 5, RH_NONE);
    op(m, RH_SOFTMAX, 5, 6, RH_NONE);
    m->outputs[1] = 4;
    m->desc.num_outputs = 2;
}

static void activations(test_model *m) {
    value(m, 3, 4, WHOLE(20));
    for (int32_t a = RH_NONE; a <= RH_TANH; a++) {
        value(m, 3, 4, WHOLE(20));
        op(m, RH_SCALE, a, a + 1, a);
    }
}

static void large_enough_to_share(test_model *m) {
    value(m, 20, 20, WHOLE(3));
    value(m, 20, 20, SEGMENTS({48, 16, 32, 48}));
    value(m, 10, 10, SEGMENTS({64, 16, 48, 64}));
    value(m, 20, 20, SEGMENTS({48, 16, 32, 48}));
    value(m, 10, 10, SEGMENTS({48, 16, 32, 48}));
    value(m, 4, 4, SEGMENTS({128, 32, 96, 128}));
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
    conv(m, 1, 2, 3, 2, 1, 1, RH_RELU);
    conv(m, 1, 3, 3, 1, 1, 48, RH_RELU)->residual = 1;
    window(op(m, RH_MAX_POOL2D, 3, 4, RH_NONE), 3, 2, 1);
    rh_op_desc *o = conv(m, 4, 5, 3, 3, 2, 1, RH_RELU); /* few pixels, many weights: split by panels */
    o->padding[0] = o->padding[1] = 1;
    m->outputs[1] = 2;
    m->desc.num_outputs = 2;
}

/* Runs that begin and end anywhere in a four of rows. */
static void many_inputs(test_model *m) {
    value(m, 5, 6, WHOLE(100));
    value(m, 5, 6, SEGMENTS({75, 18, 41, 75}));
    value(m, 5, 6, SEGMENTS({41, 9, 33, 41}, {30, 7, 18, 30}));
    value(m, 3, 3, SEGMENTS({66, 17, 34, 66}));
    value(m, 1, 1, WHOLE(10));
    conv(m, 0, 1, 3, 1, 1, 1, RH_RELU);
    conv(m, 1, 2, 3, 1, 1, 1, RH_NONE);
    conv(m, 2, 3, 3, 2, 1, 1, RH_RELU);
    conv(m, 3, 4, 3, 1, 0, 1, RH_NONE);
}

const test_case cases[] = {
    {"conv_stem", conv_stem},
    {"conv_stem_7x7", conv_stem_7x7},
    {"conv_chain", conv_chain},
    {"conv_rectangular", conv_rectangular},
    {"linear_layers", linear_layers},
    {"linear_flatten", linear_flatten},
    {"segments", segments},
    {"depthwise", depthwise},
    {"depthwise_input", depthwise_input},
    {"grouped_whole", grouped_whole},
    {"grouped_prefix", grouped_prefix},
    {"grouped_segments", grouped_segments},
    {"pools", pools},
    {"pools_ceil", pools_ceil},
    {"squeeze_excite", squeeze_excite},
    {"shortcut", shortcut},
    {"activations", activations},
    {"large_enough_to_share", large_enough_to_share},
    {"many_inputs", many_inputs},
};
const int num_cases = sizeof cases / sizeof cases[0];

test_model *case_build(int index, int leveled) {
    test_model *m = calloc(1, sizeof(test_model));
    seed = (uint64_t)index + 1;
    m->desc = (rh_model_desc){.values = m->values,
                              .ops = m->ops,
                              .outputs = m->outputs,
                              .num_outputs = 1,
                              .num_subnets = SUBNETS};
    for (size_t i = 0; i < sizeof m->numbers / sizeof m->numbers[0]; i++)
        m->numbers[i] = 0.5f + random_float(&seed);
    cases[index].make(m);
    for (int i = 0; leveled && i < m->desc.num_ops; i++) {
        if (m->ops[i].kind == RH_CONV2D) draw_levels(m, &m->ops[i]);
    }
    return m;
}

void case_free(test_model *m) {
    for (int i = 0; i < MAX_VALUES; i++) {
        free(m->weights[i]);
        free(m->levels[i]);
    }
    free(m);
}

/* ---- the reference: every channel of the full network at its full index, those not kept skipped ---- */

typedef struct {
    int32_t channels, height, width;
    int *kept;    /* per full channel: its compact index, or -1 */
    double *data; /* [channel][y][x] */
} tensor;

static tensor allocate(const test_model *m, int32_t v, int32_t k) {
    const rh_value_desc *d = &m->values[v];
    tensor t = {total(m, v), d->height, d->width, NULL, NULL};
    t.kept = malloc((size_t)t.channels * sizeof(int));
    t.data = calloc((size_t)(t.channels * t.height * t.width), sizeof(double));
    int channel = 0, compact = 0;
    for (int s = 0; s < d->num_segments; s++) {
        for (int c = 0; c < d->full[s]; c++)
            t.kept[channel++] = c < d->kept[k * d->num_segments + s] ? compact++ : -1;
    }
    return t;
}

static double *at(const tensor *t, int c, int y, int x) {
    return &t->data[(c * t->height + y) * t->width + x];
}

static double activate(double x, int32_t activation) {
    const double relu6 = fmin(fmax(x + 3, 0), 6);
    switch (activation) {
        case RH_RELU: return fmax(x, 0);
        case RH_RELU6: return fmin(fmax(x, 0), 6);
        case RH_HARDSWISH: return x * relu6 / 6;
        case RH_HARDSIGMOID: return relu6 / 6;
        case RH_SIGMOID: return 1 / (1 + exp(-x));
        case RH_SILU: return x / (1 + exp(-x));
        case RH_GELU: return 0.5 * x * (1 + erf(x / sqrt(2)));
        case RH_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
        case RH_TANH: return tanh(x);
        default: return x;
    }
}

static double pool(const rh_op_desc *o, const tensor *in, int c, int oy, int ox) {
    double best = -INFINITY, sum = 0;
    int inside = 0, padded = 0;
    for (int i = 0; i < o->kernel[0]; i++) {
        for (int j = 0; j < o->kernel[1]; j++) {
            const int y = oy * o->stride[0] - o->padding[0] + i, x = ox * o->stride[1] - o->padding[1] + j;
            padded += y < in->height + o->padding[0] && x < in->width + o->padding[1];
            if (y < 0 || y >= in->height || x < 0 || x >= in->width) continue;
            inside++;
            sum += *at(in, c, y, x);
            best = fmax(best, *at(in, c, y, x));
        }
    }
    return o->kind == RH_MAX_POOL2D ? best : sum / (o->count_include_pad ? padded : inside);
}

static double convolve(const rh_op_desc *o, const tensor *in, const tensor *out, int k, int c, int oy, int ox) {
    const int groups = in->channels / o->group_inputs, group = c / (out->channels / groups);
    double sum = 0;
    for (int i = 0; i < o->group_inputs; i++) {
        if (in->kept[group * o->group_inputs + i] < 0) continue;
        for (int ky = 0; ky < o->kernel[0]; ky++) {
            for (int kx = 0; kx < o->kernel[1]; kx++) {
                const int y = oy * o->stride[0] - o->padding[0] + ky * o->dilation[0];
                const int x = ox * o->stride[1] - o->padding[1] + kx * o->dilation[1];
                if (y < 0 || y >= in->height || x < 0 || x >= in->width) continue;
                const int w = ((c * o->group_inputs + i) * o->kernel[0] + ky) * o->kernel[1] + kx;
                if (o->levels != NULL && o->levels[w] > k) continue;
                sum += o->weight[w] * *at(in, group * o->group_inputs + i, y, x);
            }
        }
    }
    return sum;
}

static double element(const test_model *m, const rh_op_desc *o, const tensor *t, int32_t k, int c, int y,
                      int x) {
    const tensor *in = &t[o->inputs[0]], *out = &t[o->output];
    const double scale = o->scale == NULL ? 1 : o->scale[k][out->kept[c]];
    const double shift = o->shift == NULL ? 0 : o->shift[k][out->kept[c]];
    const double residual = o->residual < 0 ? 0 : *at(&t[o->residual], c, y, x);
    double sum = 0;
    (void)m;
    switch (o->kind) {
        case RH_CONV2D: return convolve(o, in, out, k, c, y, x) * scale + shift + residual;
        case RH_SCALE: return *at(in, c, y, x) * scale + shift;
        case RH_ADD: return *at(in, c, y, x) + *at(&t[o->inputs[1]], c, y, x);
        case RH_MUL: {
            const tensor *b = &t[o->inputs[1]];
            return *at(in, c, y, x) * *at(b, c, b->height == 1 ? 0 : y, b->width == 1 ? 0 : x);
        }
        case RH_CONCAT:
            for (int i = 0; c >= t[o->inputs[i]].channels; i++) {
                c -= t[o->inputs[i]].channels;
                in = &t[o->inputs[i + 1]];
            }
            return *at(in, c, y, x);
        case RH_SUBSAMPLE: return *at(in, c, y * o->stride[0], x * o->stride[1]);
        case RH_GLOBAL_AVG_POOL:
            for (int i = 0; i < in->height * in->width; i++) sum += in->data[c * in->height * in->width + i];
            return sum / (in->height * in->width);
        case RH_SOFTMAX:
            for (int i = 0; i < in->channels; i++)
                sum += in->kept[i] < 0 ? 0 : exp(*at(in, i, y, x) - *at(in, c, y, x));
            return 1 / sum;
        default: return pool(o, in, c, y, x);
    }
}

int64_t value_size(const test_model *m, int32_t v, int32_t k) {
    const rh_value_desc *d = &m->values[v];
    int64_t channels = 0;
    for (int32_t s = 0; s < d->num_segments; s++) channels += d->kept[k * d->num_segments + s];
    return channels * d->height * d->width;
}

/* Zero channels are appended behind those kept, whatever their full index. */
static void pad_channels(const tensor *in, tensor *out) {
    for (int c = 0; c < in->channels; c++) {
        for (int o = 0; in->kept[c] >= 0 && o < out->channels; o++) {
            if (out->kept[o] != in->kept[c]) continue;
            memcpy(at(out, o, 0, 0), at(in, c, 0, 0), (size_t)(in->height * in->width) * sizeof(double));
        }
    }
}

static void run(const test_model *m, const rh_op_desc *o, tensor *t, int32_t k) {
    tensor *out = &t[o->output];
    if (o->kind == RH_PAD_CHANNELS) {
        pad_channels(&t[o->inputs[0]], out);
        return;
    }
    for (int c = 0; c < out->channels; c++) {
        if (out->kept[c] < 0) continue;
        for (int y = 0; y < out->height; y++) {
            for (int x = 0; x < out->width; x++)
                *at(out, c, y, x) = activate(element(m, o, t, k, c, y, x), o->activation);
        }
    }
}

void reference(const test_model *m, int32_t k, int32_t output_index, const float *input, double *output) {
    tensor t[MAX_VALUES];
    for (int v = 0; v < m->desc.num_values; v++) t[v] = allocate(m, v, k);
    for (int i = 0; i < t[0].channels * t[0].height * t[0].width; i++) t[0].data[i] = input[i];
    for (int i = 0; i < m->desc.num_ops; i++) run(m, &m->ops[i], t, k);
    const tensor *out = &t[m->outputs[output_index]];
    const int area = out->height * out->width;
    for (int c = 0; c < out->channels; c++) {
        if (out->kept[c] >= 0)
            memcpy(output + out->kept[c] * area, at(out, c, 0, 0), (size_t)area * sizeof(double));
    }
    for (int v = 0; v < m->desc.num_values; v++) {
        free(t[v].kept);
        free(t[v].data);
    }
}

static const int32_t zero = 0, one = 1;

rh_op_desc pointwise(int32_t group_inputs, int64_t weight_count) {
    return (rh_op_desc){.kind = RH_CONV2D,
                        .inputs = &zero,
                        .num_inputs = 1,
                        .output = 1,
                        .residual = -1,
                        .kernel = {1, 1},
                        .stride = {1, 1},
                        .dilation = {1, 1},
                        .group_inputs = group_inputs,
                        .weight_count = weight_count};
}

rh_model_desc model_of_two(const rh_value_desc *values, const rh_op_desc *op, int32_t num_subnets) {
    return (rh_model_desc){.values = values,
                           .ops = op,
                           .outputs = &one,
                           .num_values = 2,
                           .num_ops = 1,
                           .num_outputs = 1,
                           .num_subnets = num_subnets};
}
