/* Convolutions at load: weights into panels, and for each subnet the runs of rows and the units of channels
 * it uses.
 *
 * Panels: [O / RH_LANES][tap][I][RH_LANES], zeros behind the last channel; of integers, whose kernels take several
 * rows at a time, [O / RH_LANES][tap * I / together][RH_LANES][together]. Each segment of output channels
 * (each group of a grouped convolution) starts a panel of its own, so that a prefix of a segment is a prefix
 * of its panels.
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* Output channels that start a panel: a segment of the full output, or the part of one that lies in a group.
 */
typedef struct {
    int32_t first;
    int32_t count;
    int32_t group;
    int32_t panel;
} column_block;

static int32_t panels_of(int32_t channels) { return (channels + RH_LANES - 1) / RH_LANES; }

/* The part of `stretches` that lies in the full channels [first, first + count), counted from there; its
 * first compact channel goes to `compact`. `at` is the first stretch that does not end before `first`, which
 * never decreases from call to call. Returns the number of stretches. */
static int32_t clip(const rh_stretch *stretches, int32_t num, int32_t *at, int32_t first, int32_t count,
                    rh_stretch *part, int32_t *compact) {
    int32_t found = 0;
    while (*at < num && stretches[*at].full + stretches[*at].count <= first) (*at)++;
    for (int32_t s = *at; s < num && stretches[s].full < first + count; s++) {
        const int32_t from = stretches[s].full > first ? stretches[s].full : first;
        const int32_t last = stretches[s].full + stretches[s].count;
        const int32_t to = last < first + count ? last : first + count;
        const int32_t start = stretches[s].compact + from - stretches[s].full;
        if (found == 0) *compact = start;
        part[found++] = (rh_stretch){start - *compact, from - first, to - from};
    }
    return found;
}

/* Room for `count` packed numbers of the model's type, and for as many levels where there are some. */
static int32_t make_room(rh_model *model, rh_op *op, const rh_op_desc *desc, int64_t count) {
    const int64_t size = rh_weight_size(model, op);
    void *room = rh_model_alloc(model, count, size);
    if (desc->levels != NULL) {
        op->levels = rh_model_alloc(model, count, 1);
        if (op->levels == NULL) return RH_OUT_OF_MEMORY;
        model->weight_bytes += count;
    }
    if (room == NULL) return RH_OUT_OF_MEMORY;
    if (model->weight_bits == 0) {
        op->weight = room;
    } else {
        op->integers = room;
    }
    model->weight_bytes += count * size;
    return RH_OK;
}

/* A weight that no subnet uses stays 0. */
static inline void put(const rh_model *model, rh_op *op, int64_t to, const rh_op_desc *desc, int64_t from) {
    if (op->levels != NULL) {
        const uint8_t level = desc->levels[from];
        op->levels[to] = level;
        if (level >= model->num_subnets) return;
        if (op->whole_from < level) op->whole_from = level;
    }
    if (op->weight != NULL) {
        op->weight[to] = desc->weight[from];
    } else if (op->narrow) {
        ((int8_t *)op->integers)[to] = (int8_t)desc->quant.weight[from];
    } else {
        ((int16_t *)op->integers)[to] = desc->quant.weight[from];
    }
}

/* Room to mask `count` weights of `op` in. */
static void need_scratch(rh_model *model, const rh_op *op, int64_t count) {
    const int64_t bytes = (count * rh_weight_size(model, op) + RH_ALIGN - 1) / RH_ALIGN * RH_ALIGN;
    if (op->whole_from > 0 && model->scratch < bytes) model->scratch = bytes;
}

static int32_t pack(rh_model *model, rh_op *op, const rh_op_desc *desc, const column_block *blocks,
                    int32_t num_blocks, int32_t num_panels) {
    const int64_t taps = (int64_t)op->kernel[0] * op->kernel[1], inputs = op->group_inputs;
    op->weight_stride = (int64_t)rh_round_up((int32_t)(taps * inputs), op->together) * RH_LANES;
    if (op->weight_stride > INT64_MAX / 8 / num_panels) return RH_TOO_LARGE;
    const int32_t status = make_room(model, op, desc, op->weight_stride * num_panels);
    if (status != RH_OK) return status;
    for (int32_t b = 0; b < num_blocks; b++) {
        for (int32_t c = 0; c < blocks[b].count; c++) {
            const int64_t from = (blocks[b].first + c) * inputs * taps;
            for (int64_t i = 0; i < inputs; i++) {
                for (int64_t t = 0; t < taps; t++) {
                    const int64_t to = rh_packed_at(op, blocks[b].panel * RH_LANES + c, t * inputs + i);
                    put(model, op, to, desc, from + i * taps + t);
                }
            }
        }
    }
    need_scratch(model, op, op->weight_stride * (num_panels < 2 ? 1 : 2));
    return RH_OK;
}

/* The runs of rows that subnet `k` reads: for each tap the kept channels of one group, joined where they
 * touch. */
static int32_t plan_runs(rh_model *model, const rh_op *op, int32_t k, const rh_stretch *stretches,
                         int32_t num) {
    const rh_layout *in = &model->values[op->inputs[0]].layout[k];
    const int64_t taps = (int64_t)op->kernel[0] * op->kernel[1];
    rh_op_plan *plan = &op->plan[k];
    plan->runs = rh_model_alloc(model, taps * num, sizeof(rh_run_of_rows));
    if (plan->runs == NULL) return RH_OUT_OF_MEMORY;
    int64_t rows = 0;
    for (int32_t ky = 0; ky < op->kernel[0]; ky++) {
        for (int32_t kx = 0; kx < op->kernel[1]; kx++) {
            const int32_t tap = ky * op->dilation[0] * in->pitch + kx * op->dilation[1] * in->stride;
            for (int32_t s = 0; s < num; s++) {
                const int32_t row = (ky * op->kernel[1] + kx) * op->group_inputs + stretches[s].full;
                const int32_t input = tap + stretches[s].compact;
                rh_run_of_rows *before = plan->num_runs > 0 ? &plan->runs[plan->num_runs - 1] : NULL;
                rows += stretches[s].count;
                if (before != NULL && before->input + before->length == input &&
                    before->row + before->length == row) {
                    before->length += stretches[s].count;
                } else {
                    plan->runs[plan->num_runs++] = (rh_run_of_rows){input, row, stretches[s].count};
                }
            }
        }
    }
    const rh_value *out = &model->values[op->output];
    plan->work = rows * rh_round_up(out->layout[k].channels, RH_LANES) * out->height * out->width;
    return RH_OK;
}

/* The units of one block in subnet `k`. */
static void add_units(rh_op_plan *plan, const column_block *block, int32_t input, int32_t output,
                      int32_t channels) {
    for (int32_t c = 0; c < channels; c += RH_UNIT) {
        const int32_t rest = channels - c;
        plan->units[plan->num_units++] =
            (rh_unit){input, output + c, rest < RH_UNIT ? rest : RH_UNIT, block->panel + c / RH_LANES};
    }
}

/* Room for the stretches of one subnet: all inputs, all outputs, the inputs of one group and of another one.
 */
typedef struct {
    rh_stretch *ins;
    rh_stretch *outs;
    rh_stretch *group;
    rh_stretch *other;
} scratch;

/* The units of subnet `k`, and its runs. Every group that is kept must keep the same of its inputs, because
 * the groups share one list of runs. */
static int32_t plan_subnet(rh_model *model, rh_op *op, int32_t k, const column_block *blocks,
                           int32_t num_blocks, const scratch *room) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const int32_t num_ins = rh_value_stretches(in, k, room->ins);
    const int32_t num_outs = rh_value_stretches(out, k, room->outs);
    rh_op_plan *plan = &op->plan[k];
    plan->units = rh_model_alloc(
        model, blocks[num_blocks - 1].panel + panels_of(blocks[num_blocks - 1].count), sizeof(rh_unit));
    if (plan->units == NULL) return RH_OUT_OF_MEMORY;
    int32_t num_group = 0, group = -1, input = 0, at_in = 0, at_out = 0;
    for (int32_t b = 0; b < num_blocks; b++) {
        int32_t output = 0;
        const int32_t parts =
            clip(room->outs, num_outs, &at_out, blocks[b].first, blocks[b].count, room->other, &output);
        if (parts == 0) continue;
        if (parts > 1 || room->other[0].full != 0) return RH_UNSUPPORTED;
        const int32_t kept = room->other[0].count;
        if (group != blocks[b].group) {
            rh_stretch *reads = group < 0 ? room->group : room->other;
            const int32_t first = blocks[b].group * op->group_inputs;
            const int32_t num = clip(room->ins, num_ins, &at_in, first, op->group_inputs, reads, &input);
            if (group < 0) num_group = num;
            if (num == 0 || num != num_group || memcmp(room->group, reads, (size_t)num * sizeof(rh_stretch)) != 0)
                return RH_UNSUPPORTED;
            group = blocks[b].group;
        }
        /* A lone block may write whole panels: its pixels are as wide. */
        const int whole = num_blocks == 1;
        add_units(plan, &blocks[b], input, output, whole ? rh_round_up(kept, RH_LANES) : kept);
    }
    return plan_runs(model, op, k, room->group, num_group);
}

/* Cuts the full output where a segment or a group ends. */
static int32_t cut(const rh_value *out, int32_t group_outputs, column_block *blocks) {
    int32_t num = 0, first = 0, panel = 0;
    for (int32_t s = 0; s < out->num_segments; s++) {
        const int32_t end = first + out->full[s];
        while (first < end) {
            const int32_t group = first / group_outputs, group_end = (group + 1) * group_outputs;
            const int32_t count = (end < group_end ? end : group_end) - first;
            blocks[num++] = (column_block){first, count, group, panel};
            first += count;
            panel += panels_of(count);
        }
    }
    return num;
}

static int32_t plan_panels(rh_model *model, rh_op *op, const rh_op_desc *desc, int32_t groups) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    /* A group, and a segment, begins a panel of its own: channels are counted in all of them. */
    if ((int64_t)groups * panels_of(out->total / groups) + out->num_segments > INT32_MAX / RH_LANES - 2)
        return RH_TOO_LARGE;
    const size_t ins = (size_t)in->num_segments, outs = (size_t)out->num_segments;
    column_block *blocks = malloc((outs + (size_t)groups) * sizeof(column_block));
    rh_stretch *stretches = malloc((3 * ins + 2 * outs) * sizeof(rh_stretch));
    int32_t status = blocks == NULL || stretches == NULL ? RH_OUT_OF_MEMORY : RH_OK;
    if (status == RH_OK) {
        /* `other` is last: it holds stretches of inputs or of outputs. */
        const scratch room = {stretches, stretches + ins, stretches + ins + outs, stretches + 2 * ins + outs};
        const int32_t num_blocks = cut(out, out->total / groups, blocks);
        const column_block *last = &blocks[num_blocks - 1];
        status = pack(model, op, desc, blocks, num_blocks, last->panel + panels_of(last->count));
        for (int32_t k = 0; status == RH_OK && k < model->num_subnets; k++)
            status = plan_subnet(model, op, k, blocks, num_blocks, &room);
    }
    free(blocks);
    free(stretches);
    return status;
}

/* ---- depthwise ---- */

static int32_t plan_depthwise_subnet(rh_model *model, rh_op *op, int32_t k) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const rh_layout *layout = &in->layout[k];
    const int32_t taps = op->kernel[0] * op->kernel[1];
    rh_op_plan *plan = &op->plan[k];
    plan->taps = rh_model_alloc(model, taps, sizeof(int32_t));
    plan->stretches = rh_model_alloc(model, out->num_segments, sizeof(rh_stretch));
    rh_stretch *ins = malloc((size_t)in->num_segments * sizeof(rh_stretch));
    if (plan->taps == NULL || plan->stretches == NULL || ins == NULL) {
        free(ins);
        return RH_OUT_OF_MEMORY;
    }
    for (int32_t t = 0; t < taps; t++) {
        plan->taps[t] = t / op->kernel[1] * op->dilation[0] * layout->pitch +
                        t % op->kernel[1] * op->dilation[1] * layout->stride;
    }
    plan->num_stretches = rh_value_stretches(out, k, plan->stretches);
    const int32_t num_ins = rh_value_stretches(in, k, ins);
    const int same = num_ins == plan->num_stretches &&
                     memcmp(ins, plan->stretches, (size_t)num_ins * sizeof(rh_stretch)) == 0;
    free(ins);
    if (plan->num_stretches == 1 && plan->stretches[0].full == 0)
        plan->stretches[0].count = rh_round_up(plan->stretches[0].count, RH_LANES);
    plan->work = (int64_t)taps * out->layout[k].channels * out->height * out->width;
    return same ? RH_OK : RH_UNSUPPORTED;
}

static int32_t plan_depthwise(rh_model *model, rh_op *op, const rh_op_desc *desc) {
    const int32_t channels = model->values[op->output].total;
    const int64_t taps = (int64_t)op->kernel[0] * op->kernel[1];
    op->depthwise = 1;
    op->weight_stride = rh_round_up(channels, RH_LANES);
    int32_t status = make_room(model, op, desc, op->weight_stride * taps);
    if (status != RH_OK) return status;
    for (int64_t t = 0; t < taps; t++) {
        for (int32_t c = 0; c < channels; c++) put(model, op, t * op->weight_stride + c, desc, c * taps + t);
    }
    need_scratch(model, op, op->weight_stride * taps);
    for (int32_t k = 0; status == RH_OK && k < model->num_subnets; k++)
        status = plan_depthwise_subnet(model, op, k);
    return status;
}

int32_t rh_conv2d_plan(rh_model *model, rh_op *op, const rh_op_desc *desc) {
    const rh_value *in = &model->values[op->inputs[0]], *out = &model->values[op->output];
    const int missing = model->weight_bits == 0 ? desc->weight == NULL : desc->quant.weight == NULL;
    if (missing || op->group_inputs < 1 || in->total % op->group_inputs != 0) return RH_INVALID;
    const int32_t groups = in->total / op->group_inputs;
    const int64_t taps = (int64_t)op->kernel[0] * op->kernel[1];
    if (taps * op->group_inputs > INT32_MAX / RH_LANES) return RH_TOO_LARGE;
    if (out->total % groups != 0 || desc->weight_count != (int64_t)out->total * op->group_inputs * taps)
        return RH_INVALID;
    if (op->group_inputs == 1 && groups > 1 && out->total == groups) return plan_depthwise(model, op, desc);
    return plan_panels(model, op, desc, groups);
}
