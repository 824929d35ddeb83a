/* One model, many contexts on many threads, each switching subnets on its own; every answer must be the one
 * that a single thread gives. ThreadSanitizer watches. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"

enum { USERS = 4, ROUNDS = 20, BATCH = 5 };

typedef struct {
    const test_model *m;
    rh_model *model;
    const float *x;
    float *want[SUBNETS];
    atomic_int *failures;
    int number;
} user;

static int64_t output_size(const test_model *m, int32_t k) { return value_size(m, m->outputs[0], k) * BATCH; }

static void *use(void *argument) {
    const user *u = argument;
    rh_context *context;
    if (rh_context_create(u->model, 1 + u->number % 3, &context) != RH_OK) {
        atomic_fetch_add(u->failures, 1);
        return NULL;
    }
    float *y = malloc((size_t)output_size(u->m, SUBNETS - 1) * sizeof(float));
    for (int round = 0; round < ROUNDS; round++) {
        const int32_t k = (round + u->number) % SUBNETS;
        rh_select(context, k);
        const int64_t batch = 1 + round % BATCH;
        rh_run(context, batch, u->x, &y);
        const size_t bytes = (size_t)(output_size(u->m, k) / BATCH * batch) * sizeof(float);
        if (memcmp(y, u->want[k], bytes) != 0) atomic_fetch_add(u->failures, 1);
    }
    free(y);
    rh_context_free(context);
    return NULL;
}

int main(void) {
    atomic_int failures = 0;
    for (int i = 0; i < 2 * num_cases; i++) {
        const int c = i / 2;
        if (strcmp(cases[c].name, "large_enough_to_share") != 0 && strcmp(cases[c].name, "segments") != 0)
            continue;
        test_model *m = case_build(c, i % 2);
        m->desc.num_outputs = 1;
        rh_model *model;
        rh_context *context;
        int32_t failed;
        if (rh_model_build(&m->desc, &model, &failed) != RH_OK ||
            rh_context_create(model, 1, &context) != RH_OK)
            return 1;
        uint64_t seed = 3;
        const int64_t in = value_size(m, 0, 0) * BATCH;
        float *x = malloc((size_t)in * sizeof(float));
        for (int64_t j = 0; j < in; j++) x[j] = random_float(&seed);
        user users[USERS];
        for (int u = 0; u < USERS; u++) users[u] = (user){m, model, x, {NULL}, &failures, u};
        for (int32_t k = 0; k < SUBNETS; k++) {
            float *want = malloc((size_t)output_size(m, k) * sizeof(float));
            rh_select(context, k);
            for (int s = 0; s < BATCH; s++) {
                float *y = want + output_size(m, k) / BATCH * s;
                rh_run(context, 1, x + in / BATCH * s, &y);
            }
            for (int u = 0; u < USERS; u++) users[u].want[k] = want;
        }
        rh_context_free(context);
        pthread_t threads[USERS];
        for (int u = 0; u < USERS; u++) {
            if (pthread_create(&threads[u], NULL, use, &users[u]) != 0) return 1;
        }
        for (int u = 0; u < USERS; u++) pthread_join(threads[u], NULL);
        rh_model_release(model);
        for (int32_t k = 0; k < SUBNETS; k++) free(users[0].want[k]);
        free(x);
        case_free(m);
    }
    printf("%d failures\n", (int)failures);
    return failures != 0;
}
