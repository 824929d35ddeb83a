/* Parts are claimed, not assigned. A thread that has lost its processor to another program then costs nothing
 * but its help: with assigned parts and a barrier a layer, two threads on a busy machine were ten times
 * slower than one.
 *
 * Waiting spins for some microseconds, because the next layer is usually that close, and then sleeps. */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "../include/rheostat.h"

enum { RH_SPINS = 2000 };

struct rh_team {
    int32_t size;
    int32_t started;
    pthread_t *threads;
    rh_team_function function;
    const void *argument;
    _Atomic uint64_t ticket; /* number of the job, then (32 bits) its parts not yet claimed */
    atomic_int unfinished;   /* parts of the job that have not returned */
    atomic_int stop;
    atomic_int sleepers;
    atomic_int caller_sleeps;
    pthread_mutex_t mutex;
    pthread_cond_t work;
    pthread_cond_t finished;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int has_parts(rh_team *team) { return (uint32_t)atomic_load(&team->ticket) > 0; }

/* Claims a part and runs it, if there is one. A claimed part keeps the job alive: rh_team_run waits for it.
 */
static int run_part(rh_team *team) {
    uint64_t ticket = atomic_load(&team->ticket);
    while ((uint32_t)ticket > 0) {
        if (!atomic_compare_exchange_weak(&team->ticket, &ticket, ticket - 1)) continue;
        team->function(team->argument, (int32_t)((uint32_t)ticket - 1));
        if (atomic_fetch_sub(&team->unfinished, 1) == 1 && atomic_load(&team->caller_sleeps)) {
            pthread_mutex_lock(&team->mutex);
            pthread_cond_signal(&team->finished);
            pthread_mutex_unlock(&team->mutex);
        }
        return 1;
    }
    return 0;
}

/* Both sleeps follow one rule: announce it, look again, sleep; the other side changes, then looks for
 * sleepers. Sequential consistency makes one of the two see the other. */
static void sleep_until_work(rh_team *team) {
    pthread_mutex_lock(&team->mutex);
    atomic_fetch_add(&team->sleepers, 1);
    while (!has_parts(team) && !atomic_load(&team->stop)) pthread_cond_wait(&team->work, &team->mutex);
    atomic_fetch_sub(&team->sleepers, 1);
    pthread_mutex_unlock(&team->mutex);
}

static void wake(rh_team *team) {
    if (atomic_load(&team->sleepers) == 0) return;
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->work);
    pthread_mutex_unlock(&team->mutex);
}

static void *work(void *argument) {
    rh_team *team = argument;
    for (int spins = 0; !atomic_load(&team->stop);) {
        if (run_part(team)) {
            spins = 0;
        } else if (++spins < RH_SPINS) {
            relax();
        } else {
            sleep_until_work(team);
            spins = 0;
        }
    }
    return NULL;
}

void rh_team_run(rh_team *team, int32_t parts, rh_team_function function, const void *argument) {
    if (team->size == 1 || parts <= 1) {
        for (int32_t i = 0; i < parts; i++) function(argument, i);
        return;
    }
    team->function = function;
    team->argument = argument;
    atomic_store(&team->unfinished, parts);
    const uint64_t job = (atomic_load(&team->ticket) >> 32) + 1;
    atomic_store(&team->ticket, job << 32 | (uint64_t)parts);
    wake(team);
    while (run_part(team)) continue;
    for (int i = 0; i < RH_SPINS; i++) {
        if (atomic_load(&team->unfinished) == 0) return;
        relax();
    }
    pthread_mutex_lock(&team->mutex);
    atomic_store(&team->caller_sleeps, 1);
    while (atomic_load(&team->unfinished) > 0) pthread_cond_wait(&team->finished, &team->mutex);
    atomic_store(&team->caller_sleeps, 0);
    pthread_mutex_unlock(&team->mutex);
}

void rh_team_free(rh_team *team) {
    if (team == NULL) return;
    atomic_store(&team->stop, 1);
    wake(team);
    for (int32_t i = 0; i < team->started; i++) pthread_join(team->threads[i], NULL);
    pthread_cond_destroy(&team->finished);
    pthread_cond_destroy(&team->work);
    pthread_mutex_destroy(&team->mutex);
    free(team->threads);
    free(team);
}

int32_t rh_team_create(int32_t size, rh_team **made) {
    *made = NULL;
    rh_team *team = calloc(1, sizeof(rh_team));
    if (team == NULL) return RH_OUT_OF_MEMORY;
    team->size = size;
    team->threads = calloc((size_t)size, sizeof(pthread_t));
    /* These three cannot fail with default attributes on the systems we build for. */
    pthread_mutex_init(&team->mutex, NULL);
    pthread_cond_init(&team->work, NULL);
    pthread_cond_init(&team->finished, NULL);
    int32_t status = team->threads == NULL ? RH_OUT_OF_MEMORY : RH_OK;
    for (int32_t i = 0; status == RH_OK && i + 1 < size; i++) {
        if (pthread_create(&team->threads[i], NULL, work, team) != 0)
            status = RH_THREADS;
        else
            team->started++;
    }
    if (status != RH_OK) {
        rh_team_free(team);
        return status;
    }
    *made = team;
    return RH_OK;
}
