/* Integer models: every case with random integers, subnet and number of threads against naive loops of int64, bit for bit;
 * then damaged descriptions, which must be refused or run within their memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

enum { TABLE = 1 << 16, BATCH = 3 };

static int failures;

static void check(int ok, const char *what, const char *where) {
    if (ok) return;
    failures++;
    printf("FAILED %s: %s\n", where, what);
}

/* What the descriptors of one op point into. */
typedef struct {
    int16_t *weight;
    int32_t multiplier[SUBNETS][MAX_CHANNELS];
    int64_t bias[SUBNETS][MAX_CHANNELS];
    int16_t *table;
    const int32_t *multipliers[SUBNETS];
    const int64_t *biases[SUBNETS];
    const int16_t *tables[SUBNETS];
    int32_t factors[SUBNETS * 4];
    int32_t pre[SUBNETS];
    int32_t shift[SUBNETS];
    int32_t high[SUBNETS];
} integers;

typedef struct {
    test_model *m;
    integers ops[MAX_VALUES];
    float input_scale[SUBNETS];
    float output_scale[2 * SUBNETS];
} quant_model;

static int32_t between(uint64_t *seed, int32_t low, int32_t high) {
    const double u = ((double)random_float(seed) + 1) / 2;
    const int32_t x = low + (int32_t)(u * ((double)high - low + 1));
    return x > high ? high : x;
}

static int copies(const rh_op_desc *o) {
    return o->kind == RH_MAX_POOL2D || o->kind == RH_SUBSAMPLE || o->kind == RH_PAD_CHANNELS;
}

static int tabled(const rh_op_desc *o) { return o->kind == RH_SCALE && o->activation > RH_RELU6; }

static int normed(const rh_op_desc *o) {
    return o->kind == RH_CONV2D || (o->kind == RH_SCALE && !tabled(o) && o->scale != NULL);
}

static int num_factors(const rh_op_desc *o) {
    if (copies(o) || tabled(o)) return 0;
    if (o->kind == RH_CONV2D) return o->residual >= 0;
    if (o->kind == RH_ADD || o->kind == RH_CONCAT) return o->num_inputs;
    return !normed(o);
}

static double products(const rh_op_desc *o) {
    return o->kind == RH_CONV2D ? (double)o->group_inputs * o->kernel[0] * o->kernel[1] : 1;
}

/* Random integers whose results are about as large as the range of the output. */
static void draw(quant_model *q, int i, int bits, uint64_t *seed) {
    test_model *m = q->m;
    rh_op_desc *o = &m->ops[i];
    integers *own = &q->ops[i];
    rh_value_desc *in = &m->values[o->inputs[0]], *out = &m->values[o->output];
    const int32_t top = bits == 16 ? INT16_MAX : i % 2 ? 255 : 127;
    out->low = copies(o) ? in->low : i % 2 ? 0 : -top;
    out->high = copies(o) ? in->high : top;
    const double each = (double)in->high * (1 << (bits - 1)), sum = each * products(o);
    const double typical = o->kind == RH_CONV2D ? each / 3 * sqrt(products(o))
                           : o->kind == RH_MUL  ? (double)in->high * in->high / 3
                                                : in->high;
    for (int k = 0; k < SUBNETS; k++) {
        own->pre[k] = 0;
        while (o->kind == RH_CONV2D && sum / pow(2, own->pre[k]) + 1 > INT32_MAX) own->pre[k]++;
        const double gain = typical / pow(2, own->pre[k]) * (1 << 20) / top;
        own->shift[k] = (int32_t)fmax(1, rint(log2(gain)));
        own->high[k] = between(seed, top / 2, out->high);
        for (int f = 0; f < 4; f++) own->factors[4 * k + f] = 0;
        for (int c = 0; c < MAX_CHANNELS; c++) {
            own->multiplier[k][c] = between(seed, -(1 << 20), 1 << 20);
            own->bias[k][c] = (int64_t)(random_float(seed) * top / 4 * pow(2, own->shift[k]));
        }
        own->multipliers[k] = own->multiplier[k];
        own->biases[k] = own->bias[k];
        own->tables[k] = own->table;
    }
    /* Residuals share the shift of the sums. */
    for (int f = 0; f < num_factors(o) * SUBNETS; f++) {
        const double unit = o->kind == RH_CONV2D ? pow(2, own->shift[f / num_factors(o)]) : 1 << 20;
        own->factors[f] = (int32_t)fmin(unit * (0.9 + 0.2 * (double)random_float(seed)), INT32_MAX);
    }
    for (int t = 0; t < TABLE; t++) own->table[t] = (int16_t)(out->low + t * 37 % (out->high - out->low + 1));
    for (int64_t w = 0; o->kind == RH_CONV2D && w < o->weight_count; w++)
        own->weight[w] = (int16_t)between(seed, -(1 << (bits - 1)), (1 << (bits - 1)) - 1);
    o->quant = (rh_quant_desc){
        .weight = own->weight,
        .multiplier = normed(o) ? own->multipliers : NULL,
        .bias = normed(o) ? own->biases : NULL,
        .table = tabled(o) ? own->tables : NULL,
        .factors = own->factors,
        .num_factors = num_factors(o),
        .pre = own->pre,
        .shift = own->shift,
        .high = own->high,
    };
}

static quant_model *quantised(int index, int leveled, int bits, uint64_t seed) {
    quant_model *q = calloc(1, sizeof(quant_model));
    q->m = case_build(index, leveled);
    q->m->desc.weight_bits = bits;
    q->m->desc.input_scale = q->input_scale;
    q->m->desc.output_scale = q->output_scale;
    q->m->values[0].high = bits == 16 ? INT16_MAX : 127;
    q->m->values[0].low = -q->m->values[0].high;
    for (int k = 0; k < SUBNETS; k++) {
        q->input_scale[k] = 1.5f / (float)q->m->values[0].high + 0.001f * (float)k;
        q->output_scale[k] = 0.01f * (float)(k + 1);
        q->output_scale[SUBNETS + k] = 0.3f;
    }
    for (int i = 0; i < q->m->desc.num_ops; i++) {
        q->ops[i].weight = calloc((size_t)(q->m->ops[i].weight_count + 1), sizeof(int16_t));
        q->ops[i].table = calloc(TABLE, sizeof(int16_t));
        draw(q, i, bits, &seed);
    }
    return q;
}

static void forget(quant_model *q) {
    for (int i = 0; i < MAX_VALUES; i++) {
        free(q->ops[i].weight);
        free(q->ops[i].table);
    }
    case_free(q->m);
    free(q);
}

/* ---- the reference ---- */

typedef struct {
    int channels; /* of the full network */
    int height;
    int width;
    int kept[MAX_CHANNELS]; /* compact index, or -1 */
    int64_t *data;
} tensor;

static int64_t *at(const tensor *t, int c, int y, int x) {
    return &t->data[((int64_t)c * t->height + y) * t->width + x];
}

static void allocate(tensor *t, const rh_value_desc *d, int k) {
    int compact = 0;
    *t = (tensor){.height = d->height, .width = d->width};
    for (int s = 0; s < d->num_segments; s++) {
        for (int c = 0; c < d->full[s]; c++)
            t->kept[t->channels++] = c < d->kept[k * d->num_segments + s] ? compact++ : -1;
    }
    t->data = calloc((size_t)t->channels * (size_t)(d->height * d->width), sizeof(int64_t));
}

static int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

static int64_t rounded(int64_t t, int n) {
    return n == 0 ? t : floor_divide(t + ((int64_t)1 << (n - 1)), (int64_t)1 << n);
}

static int64_t convolve(const rh_op_desc *o, const tensor *in, const tensor *out, int k, int c, int oy, int ox) {
    const int groups = in->channels / o->group_inputs, group = c / (out->channels / groups);
    int64_t sum = 0;
    for (int i = 0; i < o->group_inputs; i++) {
        if (in->kept[group * o->group_inputs + i] < 0) continue;
        for (int ky = 0; ky < o->kernel[0]; ky++) {
            for (int kx = 0; kx < o->kernel[1]; kx++) {
                const int y = oy * o->stride[0] - o->padding[0] + ky * o->dilation[0];
                const int x = ox * o->stride[1] - o->padding[1] + kx * o->dilation[1];
                if (y < 0 || y >= in->height || x < 0 || x >= in->width) continue;
                const int w = ((c * o->group_inputs + i) * o->kernel[0] + ky) * o->kernel[1] + kx;
                if (o->levels != NULL && o->levels[w] > k) continue;
                sum += o->quant.weight[w] * *at(in, group * o->group_inputs + i, y, x);
            }
        }
    }
    return sum;
}

/* The sum or the maximum of a window, and how many positions count. */
static int64_t pool(const rh_op_desc *o, const tensor *in, int c, int oy, int ox, int64_t *count) {
    int64_t best = INT64_MIN, sum = 0;
    const int global = o->kind == RH_GLOBAL_AVG_POOL;
    const int rows = global ? in->height : o->kernel[0], columns = global ? in->width : o->kernel[1];
    *count = 0;
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) {
            const int y = global ? i : oy * o->stride[0] - o->padding[0] + i;
            const int x = global ? j : ox * o->stride[1] - o->padding[1] + j;
            const int inside = y >= 0 && y < in->height && x >= 0 && x < in->width;
            if (inside || (o->count_include_pad && y < in->height + o->padding[0] && x < in->width + o->padding[1]))
                ++*count;
            if (!inside) continue;
            sum += *at(in, c, y, x);
            best = *at(in, c, y, x) > best ? *at(in, c, y, x) : best;
        }
    }
    return o->kind == RH_MAX_POOL2D ? best : sum;
}

static int64_t element(const quant_model *q, int i, const tensor *t, int k, int c, int y, int x) {
    const rh_op_desc *o = &q->m->ops[i];
    const integers *own = &q->ops[i];
    const tensor *in = &t[o->inputs[0]], *out = &t[o->output], *other = &t[o->inputs[o->num_inputs > 1]];
    const int32_t *factors = &own->factors[k * num_factors(o)];
    const int n = own->shift[k], compact = out->kept[c];
    int64_t sum = 0, count = 0, v = 0;
    switch (o->kind) {
        case RH_MAX_POOL2D: return pool(o, in, c, y, x, &count);
        case RH_SUBSAMPLE: return *at(in, c, y * o->stride[0], x * o->stride[1]);
        case RH_CONV2D:
            sum = rounded(convolve(o, in, out, k, c, y, x), own->pre[k]) * own->multiplier[k][compact] +
                  own->bias[k][compact];
            if (o->residual >= 0) sum += factors[0] * *at(&t[o->residual], c, y, x);
            v = rounded(sum, n);
            break;
        case RH_SCALE:
            if (tabled(o)) return own->table[*at(in, c, y, x) - q->m->values[o->inputs[0]].low];
            v = normed(o) ? rounded(*at(in, c, y, x) * own->multiplier[k][compact] + own->bias[k][compact], n)
                          : rounded(*at(in, c, y, x) * factors[0], n);
            break;
        case RH_ADD: v = rounded(factors[0] * *at(in, c, y, x) + factors[1] * *at(other, c, y, x), n); break;
        case RH_MUL:
            v = *at(other, c, other->height == 1 ? 0 : y, other->width == 1 ? 0 : x);
            v = rounded(factors[0] * *at(in, c, y, x) * v, n);
            break;
        case RH_CONCAT: {
            int part = 0;
            while (c >= t[o->inputs[part]].channels) c -= t[o->inputs[part++]].channels;
            v = rounded(factors[part] * *at(&t[o->inputs[part]], c, y, x), n);
            break;
        }
        default:
            sum = pool(o, in, c, y, x, &count);
            v = floor_divide(2 * factors[0] * sum + count * ((int64_t)1 << n), 2 * count * ((int64_t)1 << n));
    }
    const int64_t low = q->m->values[o->output].low, high = own->high[k];
    return v < low ? low : v > high ? high : v;
}

static void run_op(const quant_model *q, int i, tensor *t, int k) {
    const rh_op_desc *o = &q->m->ops[i];
    tensor *in = &t[o->inputs[0]], *out = &t[o->output];
    for (int c = 0; c < out->channels; c++) {
        if (out->kept[c] < 0) continue;
        for (int y = 0; y < out->height; y++) {
            for (int x = 0; x < out->width; x++) {
                if (o->kind != RH_PAD_CHANNELS) {
                    *at(out, c, y, x) = element(q, i, t, k, c, y, x);
                    continue;
                }
                for (int a = 0; a < in->channels; a++) {
                    if (in->kept[a] >= 0 && in->kept[a] == out->kept[c]) *at(out, c, y, x) = *at(in, a, y, x);
                }
            }
        }
    }
}

static void expect(const quant_model *q, int k, int output, const float *input, float *want) {
    const test_model *m = q->m;
    tensor t[MAX_VALUES];
    for (int v = 0; v < m->desc.num_values; v++) allocate(&t[v], &m->values[v], k);
    for (int64_t i = 0; i < value_size(m, 0, k); i++) {
        const double x = nearbyint((double)(input[i] / q->input_scale[k]));
        t[0].data[i] = x < m->values[0].low ? m->values[0].low : x > m->values[0].high ? m->values[0].high : (int64_t)x;
    }
    for (int i = 0; i < m->desc.num_ops; i++) run_op(q, i, t, k);
    const tensor *out = &t[m->outputs[output]];
    const int area = out->height * out->width;
    for (int c = 0; c < out->channels; c++) {
        for (int i = 0; out->kept[c] >= 0 && i < area; i++)
            want[out->kept[c] * area + i] = (float)out->data[c * area + i] * q->output_scale[output * SUBNETS + k];
    }
    for (int v = 0; v < m->desc.num_values; v++) free(t[v].data);
}

/* ---- tests ---- */

static int has_softmax(const test_model *m) {
    for (int i = 0; i < m->desc.num_ops; i++) {
        if (m->ops[i].kind == RH_SOFTMAX) return 1;
    }
    return 0;
}

static void compare(const quant_model *q, rh_context *context, int k, const float *x, const char *name) {
    const test_model *m = q->m;
    float *y[2] = {NULL, NULL};
    int different = 0, moved = 0;
    for (int o = 0; o < m->desc.num_outputs; o++)
        y[o] = malloc((size_t)(value_size(m, m->outputs[o], k) * BATCH) * sizeof(float));
    check(rh_select(context, k) == RH_OK && rh_run(context, BATCH, x, y) == RH_OK, "run", name);
    for (int o = 0; o < m->desc.num_outputs; o++) {
        const int64_t size = value_size(m, m->outputs[o], k);
        float *want = malloc((size_t)size * sizeof(float));
        for (int n = 0; n < BATCH; n++) {
            expect(q, k, o, x + n * value_size(m, 0, k), want);
            for (int64_t i = 0; i < size; i++) {
                different += want[i] != y[o][n * size + i];
                moved += want[i] != want[0];
            }
        }
        free(want);
        free(y[o]);
    }
    if (different > 0) printf("%s, subnet %d: %d numbers differ\n", name, k, different);
    check(different == 0, "equal to the reference", name);
    check(moved > 0 || value_size(m, m->outputs[0], k) == 1, "the outputs are not all the same", name);
}

static void test_agreement(int index, int leveled, int bits) {
    const char *name = cases[index].name;
    quant_model *q = quantised(index, leveled, bits, (uint64_t)index + 5);
    rh_model *model;
    rh_context *context;
    int32_t failed;
    const int32_t status = rh_model_build(&q->m->desc, &model, &failed);
    if (has_softmax(q->m)) {
        check(status == RH_UNSUPPORTED, "softmax is refused", name);
    } else if (status != RH_OK) {
        printf("%s: %s (op %d)\n", name, rh_status_text(status), failed);
        check(0, "build", name);
    } else {
        uint64_t seed = 7;
        const int64_t in = value_size(q->m, 0, 0) * BATCH;
        float *x = malloc((size_t)in * sizeof(float));
        for (int64_t i = 0; i < in; i++) x[i] = 2 * random_float(&seed);
        for (int threads = 1; threads <= 3; threads += 2) {
            check(rh_context_create(model, threads, &context) == RH_OK, "create", name);
            for (int k = SUBNETS - 1; k >= 0; k--) compare(q, context, k, x, name);
            rh_context_free(context);
        }
        free(x);
        rh_model_release(model);
    }
    forget(q);
}

/* As long a sum as 32 bits hold, of signed bytes: with its inputs made unsigned it starts beyond them. */
static void test_longest_sum(void) {
    enum { INPUTS = 132096 };
    const int32_t full[2] = {INPUTS, 1}, zero = 0, shift = 25, high = 127, one = 1;
    const int64_t bias = 0;
    const int32_t *multiplier = &one;
    const int64_t *biases = &bias;
    const float scale = 1;
    int16_t *weight = malloc(INPUTS * sizeof(int16_t));
    float *x = malloc(INPUTS * sizeof(float)), y, *out = &y;
    for (int i = 0; i < INPUTS; i++) {
        weight[i] = INT8_MIN;
        x[i] = -127;
    }
    const rh_value_desc values[2] = {{full, full, 1, 1, 1, -127, 127}, {full + 1, full + 1, 1, 1, 1, -127, 127}};
    rh_op_desc op = pointwise(INPUTS, INPUTS);
    op.quant = (rh_quant_desc){.weight = weight,
                               .multiplier = &multiplier,
                               .bias = &biases,
                               .pre = &zero,
                               .shift = &shift,
                               .high = &high};
    rh_model_desc desc = model_of_two(values, &op, 1);
    desc.weight_bits = 8;
    desc.input_scale = desc.output_scale = &scale;
    rh_model *model;
    rh_context *context;
    int32_t failed;
    check(rh_model_build(&desc, &model, &failed) == RH_OK && rh_context_create(model, 1, &context) == RH_OK, "build",
          "longest sum");
    check(rh_run(context, 1, x, &out) == RH_OK && y == 64, "127 * 128 * 132096 / 2^25", "longest sum");
    rh_context_free(context);
    rh_model_release(model);
    free(weight);
    free(x);
}

static int32_t *random_field(quant_model *q, uint64_t *seed) {
    test_model *m = q->m;
    const int v = between(seed, 0, m->desc.num_values - 1), i = between(seed, 0, m->desc.num_ops - 1);
    rh_op_desc *o = &m->ops[i];
    integers *own = &q->ops[i];
    int32_t *fields[] = {&o->kind, &o->output, &o->residual, &o->kernel[0], &o->kernel[1], &o->stride[0], &o->stride[1],
                         &o->padding[0], &o->padding[1], &o->dilation[0], &o->group_inputs, &o->count_include_pad,
                         &m->inputs[i][0], &m->outputs[0], &m->kept[v][0], &m->kept[v][1], &m->values[v].height,
                         &m->values[v].width, &m->values[v].low, &m->values[v].high, &m->values[v].low,
                         &o->quant.num_factors, &own->factors[between(seed, 0, 11)], &own->pre[between(seed, 0, 2)],
                         &own->shift[between(seed, 0, 2)], &own->high[between(seed, 0, 2)], &own->multiplier[0][0],
                         &m->desc.weight_bits};
    return fields[between(seed, 0, (int32_t)(sizeof fields / sizeof fields[0]) - 1)];
}

static void damage(quant_model *q, uint64_t *seed) {
    static const int32_t numbers[] = {-1, 0, 1, 2, 3, 4, 8, 16, 20, 31, 61, 62, 64, 127, 128, 255, 256,
                                      INT16_MAX, INT16_MAX + 1, -INT16_MAX, 1 << 20, INT32_MAX, INT32_MIN};
    const int what = between(seed, 0, 9), i = between(seed, 0, q->m->desc.num_ops - 1);
    rh_op_desc *o = &q->m->ops[i];
    if (what == 0) {
        q->ops[i].bias[0][0] = between(seed, 0, 1) ? INT64_MAX : (int64_t)1 << 61;
    } else if (what == 1) {
        q->ops[i].table[between(seed, 0, 300)] = INT16_MAX;
    } else if (what == 2) {
        q->ops[i].weight[0] = between(seed, 0, 1) ? INT16_MIN : 128;
    } else if (what == 3) {
        const void **pointers[] = {(const void **)&o->quant.multiplier, (const void **)&o->quant.bias,
                                   (const void **)&o->quant.weight, (const void **)&o->quant.table,
                                   (const void **)&o->quant.shift, (const void **)&o->quant.factors};
        *pointers[between(seed, 0, 5)] = NULL;
    } else {
        *random_field(q, seed) = numbers[between(seed, 0, (int32_t)(sizeof numbers / sizeof numbers[0]) - 1)];
    }
}

/* A build that succeeds must also run, on the largest inputs. The sanitizers watch. */
static void test_damage(int rounds, uint64_t seed) {
    int built = 0, runs = 0;
    for (int round = 0; round < rounds; round++) {
        quant_model *q = quantised(round % (num_cases - 1), round % 2, round % 5 ? 8 : 16, seed + (uint64_t)round);
        const int damages = 1 + round % 3;
        for (int d = 0; d < damages; d++) damage(q, &seed);
        rh_model *model;
        rh_context *context;
        int32_t failed;
        if (q->m->desc.weight_bits != 0 && rh_model_build(&q->m->desc, &model, &failed) == RH_OK) {
            built++;
            int64_t sizes = value_size(q->m, 0, 2);
            for (int v = 0; v < q->m->desc.num_values; v++) sizes += value_size(q->m, v, 2);
            if (sizes < 1 << 20 && rh_context_create(model, 2, &context) == RH_OK) {
                const int64_t in = value_size(q->m, 0, 2);
                float *x = malloc((size_t)in * sizeof(float)), *y[2] = {NULL, NULL};
                for (int64_t i = 0; i < in; i++) x[i] = i % 7 ? 1e9f : i % 2 ? -INFINITY : NAN;
                for (int o = 0; o < q->m->desc.num_outputs; o++)
                    y[o] = calloc((size_t)value_size(q->m, q->m->outputs[o], 2), sizeof(float));
                for (int k = 0; k < SUBNETS; k++) {
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
        forget(q);
    }
    check(runs > rounds / 20, "some of the damaged models run", "damage");
    printf("damage: %d of %d built, %d runs\n", built, rounds, runs);
}

/* test_quant [rounds of damage [seed]] */
int main(int argc, char **argv) {
    for (int i = 0; i < num_cases; i++) {
        for (int leveled = 0; leveled <= 1; leveled++) {
            test_agreement(i, leveled, 8);
            test_agreement(i, leveled, 16);
        }
    }
    test_longest_sum();
    test_damage(argc > 1 ? atoi(argv[1]) : 500, argc > 2 ? (uint64_t)atoi(argv[2]) : 3);
    printf("%d failures\n", failures);
    return failures != 0;
}
