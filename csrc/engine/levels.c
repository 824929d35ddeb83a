/* Weights of a pruned tensor as one subnet uses them: those of a higher level are zero. */
#include "part.h"

/* `count` weights from number `from` of those that are packed, to number `to` of the scratch. */
static void mask(const part *p, const rh_op *op, int64_t from, int64_t to, int64_t count) {
    const rh_kernels *kernels = p->model->kernels;
    const uint8_t *levels = op->levels + from;
    if (op->weight != NULL) {
        kernels->f32_mask((float *)p->scratch + to, op->weight + from, levels, count, p->subnet);
    } else if (op->narrow) {
        kernels->i8_mask((int8_t *)p->scratch + to, (const int8_t *)op->integers + from, levels, count, p->subnet);
    } else {
        kernels->i16_mask((int16_t *)p->scratch + to, (const int16_t *)op->integers + from, levels, count, p->subnet);
    }
}

/* Only rows that the subnet's runs (depthwise: channels that its stretches) read. */
const void *rh_weights_of(const part *p, const rh_op *op, const rh_unit *unit) {
    const rh_op_plan *plan = &op->plan[p->subnet];
    const int64_t first = unit == NULL ? 0 : unit->panel * op->weight_stride;
    if (!rh_is_masked(p, op)) {
        const char *packed = op->weight != NULL ? (const char *)op->weight : op->integers;
        return packed + first * rh_weight_size(p->model, op);
    }
    if (unit == NULL) {
        for (int64_t at = 0; at < op->weight_stride * op->kernel[0] * op->kernel[1]; at += op->weight_stride) {
            for (int32_t s = 0; s < plan->num_stretches; s++) {
                const rh_stretch *stretch = &plan->stretches[s];
                mask(p, op, at + stretch->full, at + stretch->full, stretch->count);
            }
        }
    } else {
        const int32_t others = op->together - 1;
        for (int64_t at = 0; at * RH_LANES < unit->channels * op->weight_stride; at += op->weight_stride) {
            for (int32_t r = 0; r < plan->num_runs; r++) {
                const rh_run_of_rows run = plan->runs[r];
                const int64_t begin = run.row & ~others, end = (run.row + run.length + others) & ~others;
                const int64_t row = at + begin * RH_LANES;
                mask(p, op, first + row, row, (end - begin) * RH_LANES);
            }
        }
    }
    return p->scratch;
}
