/* The choice of an instruction set, once per model. */
#include <stdlib.h>
#include <string.h>

#include "../kernels/kernels.h"

extern const rh_kernels rh_kernels__generic;
#ifdef RH_X86
extern const rh_kernels rh_kernels__avx2;
extern const rh_kernels rh_kernels__avx512;
extern const rh_kernels rh_kernels__avx512vnni;
#endif

const rh_kernels *rh_kernels_choose(void) {
    const rh_kernels *found[4];
    int count = 0;
#ifdef RH_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        if (__builtin_cpu_supports("avx512vnni")) found[count++] = &rh_kernels__avx512vnni;
        found[count++] = &rh_kernels__avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = &rh_kernels__avx2;
#endif
    found[count++] = &rh_kernels__generic;
    const char *wanted = getenv("RHEOSTAT_ISA");
    for (int i = 0; wanted != NULL && i < count; i++) {
        if (strcmp(found[i]->isa, wanted) == 0) return found[i];
    }
    return found[0];
}
