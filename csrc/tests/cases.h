/* A table of small models, and what they compute by loops that share nothing with the engine. */
#ifndef RH_CASES_H
#define RH_CASES_H

#include <stdint.h>

#include "../include/rheostat.h"

enum {
    MAX_VALUES = 16,
    MAX_SEGMENTS = 8,
    SUBNETS = 3,
    MAX_CHANNELS = 256, /* every scale and shift array has this many */
};

typedef struct {
    rh_model_desc desc;
    rh_value_desc values[MAX_VALUES];
    rh_op_desc ops[MAX_VALUES];
    int32_t full[MAX_VALUES][MAX_SEGMENTS];
    int32_t kept[MAX_VALUES][SUBNETS * MAX_SEGMENTS];
    int32_t inputs[MAX_VALUES][4];
    int32_t outputs[2];
    float *weights[MAX_VALUES];
    uint8_t *levels[MAX_VALUES];
    float numbers[2 * SUBNETS * MAX_VALUES + MAX_CHANNELS]; /* what the scales and shifts point into */
    const float *scale_pointers[MAX_VALUES][SUBNETS];
    const float *shift_pointers[MAX_VALUES][SUBNETS];
} test_model;

typedef struct {
    const char *name;
    void (*make)(test_model *model);
} test_case;

extern const test_case cases[];
extern const int num_cases;

test_model *case_build(int index, int leveled); /* leveled: every convolution has random levels, 255 among them */
void case_free(test_model *model);

/* A 1x1 convolution from value 0 to value 1, and a model of these two alone. */
rh_op_desc pointwise(int32_t group_inputs, int64_t weight_count);
rh_model_desc model_of_two(const rh_value_desc *values, const rh_op_desc *op, int32_t num_subnets);

float random_float(uint64_t *state); /* uniform in [-1, 1) */
int64_t value_size(const test_model *model, int32_t value, int32_t subnet);

/* One sample in double precision: `input` as for rh_run, `output` channels as kept. */
void reference(const test_model *model, int32_t subnet, int32_t output_index, const float *input,
               double *output);

#endif
