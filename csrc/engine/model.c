/* A model once it is built: its memory, its owners, the channels of its values. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

int32_t rh_abi_version(void) { return RH_ABI_VERSION; }

const char *rh_status_text(int32_t status) {
    switch (status) {
        case RH_OK: return "ok";
        case RH_OUT_OF_MEMORY: return "out of memory";
        case RH_INVALID: return "inconsistent arguments";
        case RH_UNSUPPORTED: return "no kernel for this op";
        case RH_TOO_LARGE: return "a tensor has 2^31 floats or more";
        case RH_THREADS: return "cannot start a thread";
        default: return "unknown status";
    }
}

void *rh_model_alloc(rh_model *model, int64_t count, int64_t size) {
    if (count < 0 || count > (INT64_MAX - 2 * RH_ALIGN) / size) return NULL;
    const size_t bytes = ((size_t)(count * size) + RH_ALIGN - 1) / RH_ALIGN * RH_ALIGN + RH_ALIGN;
    rh_allocation *block = aligned_alloc(RH_ALIGN, bytes);
    if (block == NULL) return NULL;
    memset(block, 0, bytes);
    block->next = model->allocations;
    model->allocations = block;
    return (char *)block + RH_ALIGN;
}

void rh_model_retain(rh_model *model) { atomic_fetch_add(&model->references, 1); }

void rh_model_release(rh_model *model) {
    if (model == NULL || atomic_fetch_sub(&model->references, 1) != 1) return;
    for (rh_allocation *block = model->allocations; block != NULL;) {
        rh_allocation *next = block->next;
        free(block);
        block = next;
    }
    free(model);
}

int64_t rh_model_weight_bytes(const rh_model *model) { return model->weight_bytes; }

const char *rh_model_isa(const rh_model *model) { return model->kernels->isa; }

int32_t rh_value_stretches(const rh_value *value, int32_t k, rh_stretch *stretches) {
    const int32_t *kept = k < 0 ? value->full : value->kept + (int64_t)k * value->num_segments;
    int32_t count = 0, full = 0, compact = 0;
    for (int32_t s = 0; s < value->num_segments; s++) {
        if (kept[s] > 0) {
            rh_stretch *before = count > 0 ? &stretches[count - 1] : NULL;
            if (before != NULL && before->full + before->count == full) {
                before->count += kept[s];
            } else {
                stretches[count++] = (rh_stretch){compact, full, kept[s]};
            }
        }
        compact += kept[s];
        full += value->full[s];
    }
    return count;
}
