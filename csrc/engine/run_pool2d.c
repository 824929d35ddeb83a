/* The loop around the kernels of pools, in floats and in integers. */
#include "part.h"

/* Clips the window of output position `at` along one dimension; returns its length with padding (for
 * averages). */
static int64_t clip(const rh_op *op, int d, int64_t at, int64_t size, int64_t *begin, int64_t *end) {
    *begin = at * op->stride[d] - op->padding[d];
    *end = min64(*begin + op->kernel[d], size + op->padding[d]);
    const int64_t length = *end - *begin;
    *begin = *begin < 0 ? 0 : *begin;
    *end = min64(*end, size);
    return length;
}

static void pool(const part *p, const rh_op *op, void *y, const rh_window *window, int32_t channels, int64_t count) {
    const rh_kernels *kernels = p->model->kernels;
    const int floats = p->model->weight_bits == 0;
    if (op->kind == RH_MAX_POOL2D) {
        floats ? kernels->f32_max_pool2d(y, window, channels) : kernels->int_max_pool2d(y, window, channels);
    } else if (floats) {
        kernels->f32_avg_pool2d(y, window, channels, (float)count);
    } else {
        kernels->int_avg_pool2d(y, window, channels, count, &op->plan[p->subnet].requant);
    }
}

/* Threads share the rows of the output; a global pool has one, of which they share the channels. */
void rh_run_pool2d(const part *p, const rh_op *op) {
    const rh_value *in = &p->model->values[op->inputs[0]], *out = &p->model->values[op->output];
    const rh_layout *from = layout_of(p, op->inputs[0]), *to = layout_of(p, op->output);
    const int global = op->kind == RH_GLOBAL_AVG_POOL;
    const int32_t pieces = global ? to->stride / RH_LANES : 1, channels = to->stride / pieces;
    const int64_t size = rh_number_size(p->model);
    const range all = share(p, (int64_t)p->samples * out->height * pieces, 1);
    for (int64_t i = all.begin; i < all.end; i++) {
        const int64_t sample = i / pieces / out->height, oy = i / pieces % out->height;
        const int64_t channel = i % pieces * channels;
        const char *x = (const char *)rh_row_of(p, op->inputs[0], sample, 0) + channel * size;
        char *y = (char *)rh_row_of(p, op->output, sample, oy) + channel * size;
        int64_t top = 0, bottom = in->height, left = 0, right = in->width, tall = bottom, wide = right;
        for (int64_t ox = 0; ox < out->width; ox++, y += to->stride * size) {
            if (!global) {
                tall = clip(op, 0, oy, in->height, &top, &bottom);
                wide = clip(op, 1, ox, in->width, &left, &right);
            }
            const rh_window window = {
                .input = x + (top * from->pitch + left * from->stride) * size,
                .row_stride = from->pitch,
                .pixel_stride = from->stride,
                .rows = (int32_t)(bottom - top),
                .columns = (int32_t)(right - left),
            };
            pool(p, op, y, &window, channels, op->count_include_pad ? tall * wide : (bottom - top) * (right - left));
        }
    }
}
