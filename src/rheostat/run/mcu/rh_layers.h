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

/* Stores stay on their side of it. */
#if defined(__GNUC__)
#define RH_BARRIER() __asm__ volatile("" ::: "memory")
#define RH_NOINLINE __attribute__((noinline, unused))
#else
#define RH_BARRIER() ((void)0)
#define RH_NOINLINE inline
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

/* A window that walks over an image. */
typedef struct {
    int16_t in[2], out[2], kernel[2], stride[2], padding[2], dilation[2];
} rh_window;

/* What a layer is in one level. */
typedef struct {
    rh_runs rows;     /* the output's channels */
    rh_runs channels; /* the input's channels, of one group */
    rh_runs columns;  /* the same, as columns of a matrix */
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
    rh_index blocks; /* of one row */
} rh_layer;

/* The sum of one row at one position of the output, whose columns are x, or at two, x and y, which share the loads of the
 * weights. Each weight has the next column or, in pruned rows, the one that `at` names. Unrolled by hand, because
 * compilers do not at -O2, and never inlined, because few registers are left where they are called. */
#define RH_DOT(name, type, column, advance)                                                               \
    static RH_NOINLINE rh_sum name(const type *x, const rh_weight *w, const uint8_t *at, size_t n, rh_sum s) { \
        (void)at;                                                                                         \
        for (; n >= 4; n -= 4, w += 4, advance += 4) {                                     \
            s += (rh_product)x[column(0)] * w[0];                                                         \
            s += (rh_product)x[column(1)] * w[1];                                                         \
            s += (rh_product)x[column(2)] * w[2];                                                         \
            s += (rh_product)x[column(3)] * w[3];                                                         \
        }                                                                                                 \
        for (; n > 0; n--, w++, advance++) s += (rh_product)x[column(0)] * *w;                            \
        return s;                                                                                         \
    }

#define RH_TWO_DOTS(name, type, column, advance)                                                             \
    static RH_NOINLINE void name(const type *x, const type *y, const rh_weight *w, const uint8_t *at, size_t n, \
                            rh_sum *sums) {                                                                  \
        rh_sum s = sums[0], t = sums[1];                                                                     \
        (void)at;                                                                                            \
        for (; n >= 4; n -= 4, w += 4, advance(4)) {                                          \
            s += (rh_product)x[column(0)] * w[0], t += (rh_product)y[column(0)] * w[0];                      \
            s += (rh_product)x[column(1)] * w[1], t += (rh_product)y[column(1)] * w[1];                      \
            s += (rh_product)x[column(2)] * w[2], t += (rh_product)y[column(2)] * w[2];                      \
            s += (rh_product)x[column(3)] * w[3], t += (rh_product)y[column(3)] * w[3];                      \
        }                                                                                                    \
        for (; n > 0; n--, w++, advance(1))                                                                  \
            s += (rh_product)x[column(0)] * *w, t += (rh_product)y[column(0)] * *w;                          \
        sums[0] = s;                                                                                         \
        sums[1] = t;                                                                                         \
    }

#define RH_THIS(i) i
#define RH_NAMED(i) at[i]
#define RH_BOTH(n) x += n, y += n
#define RH_NAMES(n) at += n
#if RH_BITS_ACTIVATIONS == 8
typedef int8_t rh_signed;
#else
typedef rh_element rh_signed; /* signed as it is */
#endif

#if RH_DENSE
RH_DOT(rh_dot, rh_element, RH_THIS, x)
RH_DOT(rh_signed_dot, rh_signed, RH_THIS, x)
RH_TWO_DOTS(rh_two_dots, rh_element, RH_THIS, RH_BOTH)
RH_TWO_DOTS(rh_two_signed_dots, rh_signed, RH_THIS, RH_BOTH)

static inline void rh_dense_row(const rh_layer *l, const rh_level *at, size_t row, const rh_element *x, int two,
                                rh_sum *sums) {
    const rh_run *run = at->columns.run, *end = run + at->columns.num;
    do {
        const rh_weight *w = l->weight + row * l->columns + run->first;
        const rh_element *a = x + run->first, *b = a + l->columns;
        if (l->input.flip != 0) {
            if (two) {
                rh_two_signed_dots((const void *)a, (const void *)b, w, 0, run->count, sums);
            } else {
                sums[0] = rh_signed_dot((const void *)a, w, 0, run->count, sums[0]);
            }
        } else if (two) {
            rh_two_dots(a, b, w, 0, run->count, sums);
        } else {
            sums[0] = rh_dot(a, w, 0, run->count, sums[0]);
        }
    } while (++run != end);
}
#endif

#if RH_PRUNED
RH_DOT(rh_pruned_dot, rh_element, RH_NAMED, at)
RH_DOT(rh_signed_pruned_dot, rh_signed, RH_NAMED, at)
RH_TWO_DOTS(rh_two_pruned_dots, rh_element, RH_NAMED, RH_NAMES)
RH_TWO_DOTS(rh_two_signed_pruned_dots, rh_signed, RH_NAMED, RH_NAMES)

static inline void rh_pruned_row(const rh_layer *l, uint8_t level, size_t row, const rh_element *x, int two,
                                 rh_sum *sums) {
    const uint8_t *count = l->count + row * l->blocks * RH_LEVELS, *column = l->column + l->start[row];
    const rh_weight *w = l->weight + l->start[row];
    size_t blocks = l->blocks;
    do {
        const rh_element *y = x + l->columns;
        if (l->input.flip != 0) {
            if (two) {
                rh_two_signed_pruned_dots((const void *)x, (const void *)y, w, column, count[level], sums);
            } else {
                sums[0] = rh_signed_pruned_dot((const void *)x, w, column, count[level], sums[0]);
            }
        } else if (two) {
            rh_two_pruned_dots(x, y, w, column, count[level], sums);
        } else {
            sums[0] = rh_pruned_dot(x, w, column, count[level], sums[0]);
        }
        column += count[RH_LEVELS - 1];
        w += count[RH_LEVELS - 1];
        count += RH_LEVELS;
        x += RH_BLOCK;
    } while (--blocks > 0);
}
#endif

#if RH_DENSE || RH_PRUNED
/* Rows `row` ... `last - 1` at one or `two` positions of the output; `channel` counts the rows that the level keeps. */
static inline void rh_rows(rh_element *arena, const rh_layer *l, uint8_t level, const rh_element *x, size_t row,
                           size_t last, size_t channel, size_t position, int two) {
    const rh_level *at = &l->level[level];
    const size_t area = l->area;
    const rh_element *other = l->has_other ? arena + l->other.at + row * area + position : 0;
    rh_element *to = arena + l->output.at + row * area + position;
    for (; row < last; row++, channel++, to += area) {
        rh_sum sums[2] = {0, 0};
#if !RH_PRUNED
        rh_dense_row(l, at, row, x, two, sums);
#elif !RH_DENSE
        rh_pruned_row(l, level, row, x, two, sums);
#else
        if (l->start != 0) {
            rh_pruned_row(l, level, row, x, two, sums);
        } else {
            rh_dense_row(l, at, row, x, two, sums);
        }
#endif
        to[0] = rh_finished(sums[0], channel, other, l->other.flip, &at->epilogue);
        if (two) to[1] = rh_finished(sums[1], channel, other != 0 ? other + 1 : 0, l->other.flip, &at->epilogue);
        if (other != 0) other += area;
    }
}

/* What the window at (y, x) holds, channel after channel, and zeros where it leaves the image. */
static inline void rh_gather(rh_element *column, const rh_layer *l, const rh_runs *channels, const rh_element *image,
                             int y, int x) {
    /* Copies: for all that the compiler knows, a store to `column` changes what pointers point to. */
    const rh_window w = l->window;
    const size_t width = w.in[1], area = w.in[0] * width, taps = l->taps;
    const int inside = y >= 0 && x >= 0 && y + (w.kernel[0] - 1) * w.dilation[0] < w.in[0] &&
                       x + (w.kernel[1] - 1) * w.dilation[1] < w.in[1];
    for (size_t r = 0; r < channels->num; r++) {
        const rh_run run = channels->run[r];
        const rh_element *channel = image + run.first * area;
        rh_element *to = column + run.first * taps;
        for (size_t c = run.count; c > 0; c--, channel += area) {
            if (inside) {
                const rh_element *line = channel + y * width + x;
                for (int i = w.kernel[0]; i > 0; i--, line += w.dilation[0] * width) {
                    const rh_element *from = line;
                    for (int j = w.kernel[1]; j > 0; j--, from += w.dilation[1]) *to++ = *from;
                }
            } else {
                for (int i = w.kernel[0], v = y; i > 0; i--, v += w.dilation[0]) {
                    for (int j = w.kernel[1], u = x; j > 0; j--, u += w.dilation[1])
                        *to++ = v >= 0 && v < w.in[0] && u >= 0 && u < w.in[1] ? channel[v * width + u] : 0;
                }
            }
        }
    }
}

static inline void rh_linear(rh_element *arena, const rh_layer *l, uint8_t level) {
    const rh_runs rows = l->level[level].rows;
    size_t channel = 0;
    for (size_t r = 0; r < rows.num; r++) {
        const rh_run run = rows.run[r];
        rh_rows(arena, l, level, arena + l->input.at, run.first, run.first + run.count, channel, 0, 0);
        channel += run.count;
    }
}

/* Two positions at a time, as far as a line of the output has them; `column` has room for the columns of both. */
static inline void rh_conv2d(rh_element *arena, rh_element *column, const rh_layer *l, uint8_t level) {
    const rh_level *at = &l->level[level];
    const rh_window w = l->window;
    size_t position = 0;
    for (int oy = 0, y = -w.padding[0]; oy < w.out[0]; oy++, y += w.stride[0]) {
        for (int ox = 0, x = -w.padding[1]; ox < w.out[1];) {
            const int two = ox + 1 < w.out[1];
            const rh_element *group = arena + l->input.at;
            size_t end = 0, channel = 0; /* rows before `end` read what is in `column` */
            for (size_t r = 0; r < at->rows.num; r++) {
                size_t row = at->rows.run[r].first;
                const size_t last = row + at->rows.run[r].count;
                while (row < last) {
                    for (; row >= end + l->group_rows; end += l->group_rows) group += l->group_size;
                    if (row >= end) {
                        rh_gather(column, l, &at->channels, group, y, x);
                        if (two) rh_gather(column + l->columns, l, &at->channels, group, y, x + w.stride[1]);
                        group += l->group_size;
                        end += l->group_rows;
                    }
                    const size_t stop = last < end ? last : end;
                    if (two) {
                        rh_rows(arena, l, level, column, row, stop, channel, position, 1);
                    } else {
                        rh_rows(arena, l, level, column, row, stop, channel, position, 0);
                    }
                    channel += stop - row;
                    row = stop;
                }
            }
            ox += 1 + two;
            x += two ? 2 * w.stride[1] : w.stride[1];
            position += 1 + two;
        }
    }
}
#endif

/* The mean over a window or, for a copy of every n-th position, the largest. */
static inline void rh_pool(rh_element *arena, const rh_layer *l, uint8_t level, int mean) {
    const rh_level *at = &l->level[level];
    const rh_window *w = &l->window;
    const size_t width = w->in[1], area = w->in[0] * width;
    for (size_t r = 0; r < at->rows.num; r++) {
        const size_t last = at->rows.run[r].first + at->rows.run[r].count;
        for (size_t c = at->rows.run[r].first; c < last; c++) {
            const rh_element *channel = arena + l->input.at + c * area;
            rh_element *to = arena + l->output.at + c * l->area;
            for (int oy = 0, y = -w->padding[0]; oy < w->out[0]; oy++, y += w->stride[0]) {
                for (int ox = 0, x = -w->padding[1]; ox < w->out[1]; ox++, x += w->stride[1]) {
                    const int top = y > 0 ? y : 0, left = x > 0 ? x : 0;
                    const int bottom = y + w->kernel[0] < w->in[0] ? y + w->kernel[0] : w->in[0];
                    const int right = x + w->kernel[1] < w->in[1] ? x + w->kernel[1] : w->in[1];
                    rh_number best = rh_get(channel[(top * width + left)], l->input.flip);
                    rh_total total = 0;
                    for (int i = top; i < bottom; i++) {
                        const rh_element *from = channel + i * width;
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
    size_t channel = 0;
    for (size_t r = 0; r < at->rows.num; r++) {
        const size_t last = at->rows.run[r].first + at->rows.run[r].count;
        for (size_t c = at->rows.run[r].first; c < last; c++, channel++) {
            const size_t first = c * l->area;
            const rh_element *a = arena + l->input.at + first;
            const rh_element *b = arena + l->other.at + c * l->other_area;
            rh_element *to = arena + l->output.at + first;
            for (size_t i = 0; i < l->area; i++) {
                const rh_number other = l->has_other ? rh_get(l->other_area == l->area ? b[i] : *b, l->other.flip) : 0;
                to[i] = rh_point(kind, rh_get(a[i], l->input.flip), other, channel, l->input.flip, &at->epilogue);
            }
        }
    }
}

/* A copy; the channels that the output has besides its input's are 0. */
static inline void rh_pad(rh_element *arena, const rh_layer *l, uint8_t level) {
    const rh_level *at = &l->level[level];
    for (size_t r = 0; r < at->rows.num; r++) {
        rh_element *to = arena + l->output.at + at->rows.run[r].first * l->area;
        for (size_t i = at->rows.run[r].count * l->area; i > 0; i--) {
            *to++ = 0;
            RH_BARRIER(); /* or compilers call memset */
        }
    }
    for (size_t r = 0; r < at->channels.num; r++) {
        const size_t first = at->channels.run[r].first * l->area;
        memcpy(arena + l->output.at + first, arena + l->input.at + first,
               (at->channels.run[r].count * l->area) * sizeof(rh_element));
    }
}

#if RH_BITS_WEIGHTS == 32
/* Over the channels, at each position. */
static inline void rh_softmax(rh_element *arena, const rh_layer *l, uint8_t level) {
    const rh_runs *rows = &l->level[level].rows;
    for (size_t i = 0; i < l->area; i++) {
        const float *x = arena + l->input.at + i;
        float *to = arena + l->output.at + i, best = x[0], sum = 0.0f;
        for (size_t r = 0; r < rows->num; r++) {
            for (size_t c = rows->run[r].first; c < rows->run[r].first + rows->run[r].count; c++)
                best = rh_larger(best, x[c * l->area]);
        }
        for (size_t r = 0; r < rows->num; r++) {
            for (size_t c = rows->run[r].first; c < rows->run[r].first + rows->run[r].count; c++)
                sum += to[c * l->area] = rh_exp(x[c * l->area] - best);
        }
        for (size_t r = 0; r < rows->num; r++) {
            for (size_t c = rows->run[r].first; c < rows->run[r].first + rows->run[r].count; c++)
                to[c * l->area] /= sum;
        }
    }
}
#endif

/* The numbers of an output, channel after channel, without gaps; returns where the next one goes. */
static inline rh_number *rh_read(const rh_element *arena, const rh_layer *l, uint8_t level, rh_number *to) {
    const rh_runs *rows = &l->level[level].rows;
    for (size_t r = 0; r < rows->num; r++) {
        const rh_element *x = arena + l->input.at + rows->run[r].first * l->area;
        for (size_t i = rows->run[r].count * l->area; i > 0; i--) *to++ = rh_get(*x++, l->input.flip);
    }
    return to;
}

#endif
