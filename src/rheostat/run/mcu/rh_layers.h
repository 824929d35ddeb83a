/* The layers, in plain C99: no allocation, no state, nothing that depends on the compiler's int.
 *
 * A value lies in the arena channel after channel, with the channels of the largest level: what a smaller level does not
 * keep stays unused, and every offset is the same in all levels. A level is a list of runs of channels, and in pruned
 * layers a number of weights of each row: the weights of a row are sorted by level, and the level is a loop bound.
 */
#ifndef RH_LAYERS_H
#define RH_LAYERS_H

typedef enum { RH_RESCALE, RH_TABLE, RH_NORM, RH_ADD, RH_MUL } rh_kind;

#if RH_BITS_WEIGHTS == 32
#include "rh_float.h"
#else
#include "rh_integer.h"
#endif

/* Columns of a pruned row whose weights are stored together: they and their number fit a byte. */
enum { RH_BLOCK = 255 };

/* Channels first ... first + count - 1. */
typedef struct {
    rh_index first;
    rh_index count;
} rh_run;

typedef struct {
    const rh_run *run;
    rh_index num;
} rh_runs;

typedef struct {
    rh_index at; /* where it lies in the arena */
    uint8_t flip;
} rh_value;

/* A window that walks over an image. Where the input has none, its elements are the columns. */
typedef struct {
    int16_t in[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
} rh_window;

/* What a layer is in one level. */
typedef struct {
    rh_runs rows;     /* the output's channels */
    rh_runs channels; /* the input's channels, of one group */
    rh_epilogue epilogue;
} rh_level;

typedef struct {
    rh_value input;
    rh_value other; /* a residual, or the second input of an addition or a multiplication */
    rh_value output;
    rh_index area; /* positions of the output */
    rh_index other_area;
    uint8_t has_other;
    uint8_t include_pad;
    rh_window window;
    const rh_level *level; /* one for each level */
    /* A matrix: a weight for each column of each row. */
    const rh_weight *weight;
    rh_index columns;
    rh_index taps;       /* columns of one channel */
    rh_index group_rows; /* of one group */
    rh_index group_size; /* elements of the input that one group reads */
    /* Pruned: the weights of row r begin at start[r]. Each block of RH_BLOCK columns is sorted by level; `column` says
     * where in the block each weight belongs, and `count` how many there are in each level. */
    const rh_index *start;
    const uint8_t *column;
    const uint8_t *count;
} rh_layer;

/* Unrolled by hand: the compilers of microcontrollers do not at -Os and -O2. */
#define RH_DOT(name, type)                                                                 \
    static inline rh_sum name(const type *x, const rh_weight *w, rh_index n, rh_sum sum) { \
        for (; n >= 4; n = (rh_index)(n - 4), x += 4, w += 4) {                            \
            sum += (rh_product)x[0] * w[0];                                                \
            sum += (rh_product)x[1] * w[1];                                                \
            sum += (rh_product)x[2] * w[2];                                                \
            sum += (rh_product)x[3] * w[3];                                                \
        }                                                                                  \
        for (; n > 0; n--) sum += (rh_product)*x++ * *w++;                                 \
        return sum;                                                                        \
    }

#define RH_PRUNED_DOT(name, type)                                                              \
    static inline rh_sum name(const type *x, const rh_weight *w, const uint8_t *at, uint8_t n, \
                              rh_sum sum) {                                                    \
        for (; n >= 4; n = (uint8_t)(n - 4), at += 4, w += 4) {                                \
            sum += (rh_product)x[at[0]] * w[0];                                                \
            sum += (rh_product)x[at[1]] * w[1];                                                \
            sum += (rh_product)x[at[2]] * w[2];                                                \
            sum += (rh_product)x[at[3]] * w[3];                                                \
        }                                                                                      \
        for (; n > 0; n--) sum += (rh_product)x[*at++] * *w++;                                 \
        return sum;                                                                            \
    }

RH_DOT(rh_dot, rh_element)
RH_PRUNED_DOT(rh_pruned_dot, rh_element)
#if RH_BITS_ACTIVATIONS == 8
RH_DOT(rh_signed_dot, int8_t)
RH_PRUNED_DOT(rh_signed_pruned_dot, int8_t)
#else
#define rh_signed_dot rh_dot
#define rh_signed_pruned_dot rh_pruned_dot
#endif

static inline rh_sum rh_dense_row(const rh_layer *l, const rh_level *at, rh_index row, const rh_element *x) {
    const rh_weight *w = l->weight + (rh_index)(row * l->columns);
    rh_sum sum = 0;
    for (rh_index r = 0; r < at->channels.num; r++) {
        const rh_index first = (rh_index)(at->channels.run[r].first * l->taps);
        const rh_index count = (rh_index)(at->channels.run[r].count * l->taps);
        sum = l->input.flip != 0 ? rh_signed_dot((const void *)(x + first), w + first, count, sum)
                                 : rh_dot(x + first, w + first, count, sum);
    }
    return sum;
}

#if RH_PRUNED
static inline rh_sum rh_pruned_row(const rh_layer *l, uint8_t level, rh_index row, const rh_element *x) {
    const rh_index blocks = (rh_index)((l->columns + RH_BLOCK - 1) / RH_BLOCK);
    const uint8_t *count = l->count + (rh_index)(row * blocks * RH_LEVELS), *column = l->column + l->start[row];
    const rh_weight *w = l->weight + l->start[row];
    rh_sum sum = 0;
    for (rh_index b = 0; b < blocks; b++) {
        sum = l->input.flip != 0 ? rh_signed_pruned_dot((const void *)x, w, column, count[level], sum)
                                 : rh_pruned_dot(x, w, column, count[level], sum);
        column += count[RH_LEVELS - 1];
        w += count[RH_LEVELS - 1];
        count += RH_LEVELS;
        x += RH_BLOCK;
    }
    return sum;
}
#endif

/* What the window of one output pixel holds, channel after channel, and zeros where it leaves the image. */
static inline void rh_gather(rh_element *column, const rh_layer *l, const rh_runs *channels, const rh_element *x, int y,
                             int left) {
    const rh_window *w = &l->window;
    const int right = left + (w->kernel[1] - 1) * w->dilation[1];
    const rh_index width = (rh_index)w->in[1], area = (rh_index)(w->in[0] * width);
    for (rh_index r = 0; r < channels->num; r++) {
        const rh_element *channel = x + (rh_index)(channels->run[r].first * area);
        rh_element *to = column + (rh_index)(channels->run[r].first * l->taps);
        for (rh_index c = channels->run[r].count; c > 0; c--, channel += area) {
            for (int i = 0, at = y; i < w->kernel[0]; i++, at += w->dilation[0]) {
                if (at < 0 || at >= w->in[0]) {
                    for (int j = w->kernel[1]; j > 0; j--) *to++ = 0;
                } else if (left >= 0 && right < w->in[1]) {
                    const rh_element *from = channel + (rh_index)(at * width + left);
                    for (int j = w->kernel[1]; j > 0; j--, from += w->dilation[1]) *to++ = *from;
                } else {
                    const rh_element *from = channel + (rh_index)(at * width);
                    for (int j = w->kernel[1], k = left; j > 0; j--, k += w->dilation[1])
                        *to++ = k >= 0 && k < w->in[1] ? from[k] : 0;
                }
            }
        }
    }
}

/* A convolution or, without a window, a linear layer. `column` has room for the columns of one row. */
static inline void rh_matrix(rh_element *arena, rh_element *column, const rh_layer *l, uint8_t level) {
    const rh_level *at = &l->level[level];
    const rh_window *w = &l->window;
    rh_index position = 0;
    for (int oy = 0, y = -w->padding[0]; oy < w->out[0]; oy++, y += w->stride[0]) {
        for (int ox = 0, x = -w->padding[1]; ox < w->out[1]; ox++, x += w->stride[1], position++) {
            const rh_element *input = arena + l->input.at, *values = input;
            rh_index end = 0, channel = 0; /* rows before `end` read `values` */
            for (rh_index r = 0; r < at->rows.num; r++) {
                const rh_index last = (rh_index)(at->rows.run[r].first + at->rows.run[r].count);
                for (rh_index row = at->rows.run[r].first; row < last; row++, channel++) {
                    if (row >= end && w->kernel[0] > 0) {
                        for (; row >= (rh_index)(end + l->group_rows); end = (rh_index)(end + l->group_rows))
                            input += l->group_size;
                        rh_gather(column, l, &at->channels, input, y, x);
                        values = column;
                        input += l->group_size;
                        end = (rh_index)(end + l->group_rows);
                    }
                    const rh_index i = (rh_index)(row * l->area + position);
#if RH_PRUNED
                    const rh_sum sum = l->start != 0 ? rh_pruned_row(l, level, row, values)
                                                     : rh_dense_row(l, at, row, values);
#else
                    const rh_sum sum = rh_dense_row(l, at, row, values);
#endif
                    arena[l->output.at + i] = rh_finished(sum, channel, l->has_other ? arena + l->other.at + i : 0,
                                                          l->other.flip, &at->epilogue);
                }
            }
        }
    }
}

/* The mean over a window or, for a copy of every n-th position, the largest. */
static inline void rh_pool(rh_element *arena, const rh_layer *l, uint8_t level, int mean) {
    const rh_level *at = &l->level[level];
    const rh_window *w = &l->window;
    const rh_index width = (rh_index)w->in[1], area = (rh_index)(w->in[0] * width);
    for (rh_index r = 0; r < at->rows.num; r++) {
        const rh_index last = (rh_index)(at->rows.run[r].first + at->rows.run[r].count);
        for (rh_index c = at->rows.run[r].first; c < last; c++) {
            const rh_element *channel = arena + l->input.at + (rh_index)(c * area);
            rh_element *to = arena + l->output.at + (rh_index)(c * l->area);
            for (int oy = 0, y = -w->padding[0]; oy < w->out[0]; oy++, y += w->stride[0]) {
                for (int ox = 0, x = -w->padding[1]; ox < w->out[1]; ox++, x += w->stride[1]) {
                    const int top = y > 0 ? y : 0, left = x > 0 ? x : 0;
                    const int bottom = y + w->kernel[0] < w->in[0] ? y + w->kernel[0] : w->in[0];
                    const int right = x + w->kernel[1] < w->in[1] ? x + w->kernel[1] : w->in[1];
                    rh_number best = rh_get(channel[(rh_index)(top * width + left)], l->input.flip);
                    rh_total total = 0;
                    for (int i = top; i < bottom; i++) {
                        const rh_element *from = channel + (rh_index)(i * width);
                        for (int j = left; j < right; j++) {
                            const rh_number v = rh_get(from[j], l->input.flip);
                            if (mean) {
                                total += v;
                            } else {
                                best = rh_larger(best, v);
                            }
                        }
                    }
                    if (mean) {
                        int32_t tall = bottom - top, wide = right - left;
                        if (l->include_pad) { /* what a window reaches beyond the padding does not count */
                            const int below = w->in[0] + w->padding[0], beside = w->in[1] + w->padding[1];
                            tall = (y + w->kernel[0] < below ? y + w->kernel[0] : below) - y;
                            wide = (x + w->kernel[1] < beside ? x + w->kernel[1] : beside) - x;
                        }
                        *to++ = rh_mean(total, tall * wide, &at->epilogue);
                    } else {
                        *to++ = (rh_element)best;
                    }
                }
            }
        }
    }
}

/* Element by element, and channel by channel where the other input has one position. */
static inline void rh_pointwise(rh_element *arena, const rh_layer *l, uint8_t level, rh_kind kind) {
    const rh_level *at = &l->level[level];
    rh_index channel = 0;
    for (rh_index r = 0; r < at->rows.num; r++) {
        const rh_index last = (rh_index)(at->rows.run[r].first + at->rows.run[r].count);
        for (rh_index c = at->rows.run[r].first; c < last; c++, channel++) {
            const rh_index first = (rh_index)(c * l->area);
            const rh_element *a = arena + l->input.at + first;
            const rh_element *b = arena + l->other.at + (rh_index)(c * l->other_area);
            rh_element *to = arena + l->output.at + first;
            for (rh_index i = 0; i < l->area; i++) {
                const rh_number other = l->has_other ? rh_get(l->other_area == l->area ? b[i] : *b, l->other.flip) : 0;
                to[i] = rh_point(kind, rh_get(a[i], l->input.flip), other, channel, l->input.flip, &at->epilogue);
            }
        }
    }
}

/* A copy; the channels that the output has besides its input's are 0. */
static inline void rh_pad(rh_element *arena, const rh_layer *l, uint8_t level) {
    const rh_level *at = &l->level[level];
    for (rh_index r = 0; r < at->rows.num; r++) {
        rh_element *to = arena + l->output.at + (rh_index)(at->rows.run[r].first * l->area);
        for (rh_index i = (rh_index)(at->rows.run[r].count * l->area); i > 0; i--) *to++ = 0;
    }
    for (rh_index r = 0; r < at->channels.num; r++) {
        const rh_index first = (rh_index)(at->channels.run[r].first * l->area);
        memcpy(arena + l->output.at + first, arena + l->input.at + first,
               (rh_index)(at->channels.run[r].count * l->area) * sizeof(rh_element));
    }
}

#if RH_BITS_WEIGHTS == 32
/* Over the channels, at each position. */
static inline void rh_softmax(rh_element *arena, const rh_layer *l, uint8_t level) {
    const rh_runs *rows = &l->level[level].rows;
    for (rh_index i = 0; i < l->area; i++) {
        const float *x = arena + l->input.at + i;
        float *to = arena + l->output.at + i, best = x[0], sum = 0.0f;
        for (rh_index r = 0; r < rows->num; r++) {
            for (rh_index c = rows->run[r].first; c < rows->run[r].first + rows->run[r].count; c++)
                best = rh_larger(best, x[c * l->area]);
        }
        for (rh_index r = 0; r < rows->num; r++) {
            for (rh_index c = rows->run[r].first; c < rows->run[r].first + rows->run[r].count; c++)
                sum += to[c * l->area] = rh_exp(x[c * l->area] - best);
        }
        for (rh_index r = 0; r < rows->num; r++) {
            for (rh_index c = rows->run[r].first; c < rows->run[r].first + rows->run[r].count; c++)
                to[c * l->area] /= sum;
        }
    }
}
#endif

/* The numbers of an output, channel after channel, without gaps; returns where the next one goes. */
static inline rh_number *rh_read(const rh_element *arena, const rh_layer *l, uint8_t level, rh_number *to) {
    const rh_runs *rows = &l->level[level].rows;
    for (rh_index r = 0; r < rows->num; r++) {
        const rh_element *x = arena + l->input.at + (rh_index)(rows->run[r].first * l->area);
        for (rh_index i = (rh_index)(rows->run[r].count * l->area); i > 0; i--) *to++ = rh_get(*x++, l->input.flip);
    }
    return to;
}

#endif
