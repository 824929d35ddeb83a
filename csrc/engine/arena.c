/* One arena for the values of the largest subnet; the layouts of smaller ones fit into the same places. */
#include <stdlib.h>

#include "model.h"

static int64_t largest(const rh_model *model, const rh_value *value) {
    int64_t size = 0;
    for (int32_t k = 0; k < model->num_subnets; k++) {
        if (size < value->layout[k].size) size = value->layout[k].size;
    }
    return (size + RH_LANES - 1) / RH_LANES * RH_LANES;
}

static int alive_together(const rh_value *a, const rh_value *b) {
    return a->first <= b->last && b->first <= a->last;
}

/* Greedy by size (Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference"): the
 * largest value first, each in the lowest gap that fits between the values alive at the same time. */
int32_t rh_arena_plan(rh_model *model) {
    const int32_t count = model->num_values;
    int32_t *order = malloc((size_t)count * sizeof(int32_t)),
            *placed = malloc((size_t)count * sizeof(int32_t));
    int64_t *size = malloc((size_t)count * sizeof(int64_t));
    if (order == NULL || placed == NULL || size == NULL) {
        free(order);
        free(placed);
        free(size);
        return RH_OUT_OF_MEMORY;
    }
    for (int32_t v = 0; v < count; v++) {
        size[v] = largest(model, &model->values[v]);
        int32_t i = v;
        for (; i > 0 && size[order[i - 1]] < size[v]; i--) order[i] = order[i - 1];
        order[i] = v;
    }
    /* `placed` is sorted by offset. */
    for (int32_t i = 0; i < count; i++) {
        rh_value *value = &model->values[order[i]];
        int64_t offset = 0;
        for (int32_t j = 0; j < i; j++) {
            const rh_value *other = &model->values[placed[j]];
            if (!alive_together(value, other)) continue;
            if (other->offset >= offset + size[order[i]]) break;
            if (offset < other->offset + size[placed[j]]) offset = other->offset + size[placed[j]];
        }
        value->offset = offset;
        if (model->arena < offset + size[order[i]]) model->arena = offset + size[order[i]];
        int32_t j = i;
        for (; j > 0 && model->values[placed[j - 1]].offset > offset; j--) placed[j] = placed[j - 1];
        placed[j] = order[i];
    }
    free(order);
    free(placed);
    free(size);
    return RH_OK;
}
