/* A team of threads that share the parts of a job. */
#ifndef RH_THREADS_H
#define RH_THREADS_H

#include <stdint.h>

typedef struct rh_team rh_team;
typedef void (*rh_team_function)(const void *argument, int32_t part);

/* A team of `size` >= 1 threads, the caller included. Returns a status. */
int32_t rh_team_create(int32_t size, rh_team **team);
void rh_team_free(rh_team *team);

/* Calls function(argument, part) once for each part below `parts`, on whichever threads are free; returns
 * when all have returned. The caller works, too: it waits for a part that another thread has begun, never for
 * a thread to turn up. */
void rh_team_run(rh_team *team, int32_t parts, rh_team_function function, const void *argument);

#endif
