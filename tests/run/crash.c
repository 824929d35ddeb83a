/* Power failure at every byte that a switch writes and at every layer boundary of an inference, clean and torn.
 *
 * Compiled with an exported net, NET_RESUME defined. A failure is a longjmp out of net_nvm_write, before a byte or with
 * garbage in its place. All RAM then holds garbage, and net_init starts. regions.h says what each layer writes.
 * Prints: failures of switches, failures of inferences, wrong states, wrong outputs. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "net.c"
#include "net_golden.h"
#include "regions.h"

static uint8_t nvm[NET_RECORD_BYTES];
static jmp_buf power;
static long writes_left = -1; /* until the failure; -1: never */
static int garbage = -1;      /* what the byte in writing becomes; -1: it stays as it was */
static unsigned long failures[2], wrong_states, wrong_outputs;
static unsigned long noise = 12345;

static uint8_t random_byte(void) {
    noise = noise * 1103515245ul + 12345ul;
    return (uint8_t)(noise >> 16);
}

static void scribble(void *at, size_t size) {
    for (size_t i = 0; i < size; i++) ((uint8_t *)at)[i] = random_byte();
}

void net_nvm_write(uint16_t at, uint8_t byte) {
    if (writes_left == 0) {
        if (garbage >= 0) nvm[at] = (uint8_t)garbage;
        longjmp(power, 1);
    }
    if (writes_left > 0) writes_left--;
    nvm[at] = byte;
}

uint8_t net_nvm_read(uint16_t at) { return nvm[at]; }

typedef enum { SWITCH, RUN, RESUME } rh_action;

/* Do it with power for `writes` more bytes, the next one torn; 1 where power failed before it was done. */
static int fails(long writes, int torn, rh_action action, uint8_t level, const net_input *x, net_output *y) {
    writes_left = writes;
    garbage = torn;
    if (setjmp(power) != 0) return 1;
    switch (action) {
        case SWITCH: net_switch(level); break;
        case RUN: net_run(x, y); break;
        case RESUME: net_resume(y); break;
    }
    writes_left = -1;
    return 0;
}

static int reset(void) {
    writes_left = -1;
    scribble(&net_state, sizeof net_state);
    scribble(net_column, sizeof net_column);
    return net_init();
}

static void expect(int right, unsigned long *wrong) { *wrong += !right; }

static void switches(void) {
    static const int starts[] = {1, 2, 3, 126, 127, 128, 253, 254, 255, 256};
    for (size_t s = 0; s < sizeof starts / sizeof *starts; s++) {
        for (uint8_t from = 0; from < NET_LEVELS; from++) {
            for (uint8_t to = 0; to < NET_LEVELS; to++) {
                for (long at = 0; at <= 4 && from != to; at++) {
                    for (int torn = -1; torn < 256; torn++) {
                        scribble(nvm, sizeof nvm);
                        memset(nvm, 0xff, RH_RECORD_BYTES);
                        expect(reset() == NET_LOST && net_level() == NET_LEVELS - 1, &wrong_states);
                        for (int i = 0; i < starts[s]; i++) rh_record_write(&net_state.level, 0, (uint8_t)(i % NET_LEVELS));
                        rh_record_write(&net_state.level, 0, from);
                        uint8_t before[RH_RECORD_BYTES];
                        memcpy(before, nvm, sizeof before);
                        const int failed = fails(at, torn, SWITCH, to, 0, 0);
                        expect(failed == (at < 4), &wrong_states);
                        failures[0] += (unsigned long)failed;
                        const int status = reset();
                        const uint8_t level = net_level();
                        expect(status == NET_OK || status == NET_DAMAGED, &wrong_states);
                        expect(failed ? level == from || level == to : level == to && status == NET_OK, &wrong_states);
                        if (failed && torn < 0) expect(level == from, &wrong_states);
                        /* Again, while what the first failure left is still there. */
                        for (long again = 0; again < 4; again++) {
                            uint8_t left[sizeof nvm];
                            memcpy(left, nvm, sizeof left);
                            if (fails(again, -1, SWITCH, to, 0, 0)) {
                                failures[0]++;
                                reset();
                                expect(net_level() == from || net_level() == to, &wrong_states);
                            }
                            memcpy(nvm, left, sizeof left);
                            reset();
                        }
                        expect(net_switch(to) == NET_OK && net_level() == to, &wrong_states);
                        expect(reset() == NET_OK && net_level() == to, &wrong_states);
                    }
                }
            }
        }
    }
}

static int right(const net_output *y, uint8_t level, size_t n) {
    static const net_output *const outputs[NET_LEVELS] = NET_GOLDEN_OUTPUTS;
    static const size_t sizes[NET_LEVELS] = NET_OUTPUT_SIZES;
    return memcmp(y, outputs[level] + n * sizes[level], sizes[level] * sizeof *y) == 0;
}

/* Garbage over whatever the interrupted step was writing. */
static void tear_step(void) {
    const uint8_t step = rh_record_read(RH_RECORD_BYTES, NET_STEPS + 2, 0).value;
    if (step == 0) {
        scribble(net_arena + NET_INPUT_AT, NET_INPUT_SIZE * sizeof(rh_element));
        scribble(&net_kept.level, 1);
    } else if (step <= NET_STEPS) {
        scribble(net_arena + regions[step - 1][0], (size_t)regions[step - 1][1] * sizeof(rh_element));
    }
}

static void inferences(void) {
    static const net_input *const inputs[NET_LEVELS] = NET_GOLDEN_INPUTS;
    static const int torns[] = {-1, 0, 255, 1, 128, 85};
    static net_output y[NET_OUTPUT_SIZE];
    uint8_t last_level = NET_LEVELS;
    size_t last = 0;
    for (uint8_t level = 0; level < NET_LEVELS; level++) {
        for (long at = 0; at <= 4 * (NET_STEPS + 2); at++) {
            for (size_t t = 0; t < sizeof torns / sizeof *torns; t++) {
                const size_t n = (size_t)(at + (long)t) % NET_GOLDEN;
                const net_input *x = inputs[level] + n * NET_INPUT_SIZE;
                int status = NET_OK;
                reset();
                net_switch(level);
                if (fails(at, torns[t], RUN, level, x, y)) {
                    /* Up to three failures, the later ones while the inference resumes. */
                    for (int more = 0; more < 3; more++) {
                        failures[1]++;
                        tear_step();
                        reset();
                        if (more == 1) net_switch((uint8_t)((level + 1) % NET_LEVELS)); /* for the next inference */
                        if (!fails(random_byte() % 9, torns[random_byte() % 6], RESUME, level, x, y)) break;
                    }
                    tear_step();
                    reset();
                    scribble(y, sizeof y);
                    status = net_resume(y);
                    expect(status == NET_OK || status == NET_AGAIN || status == NET_NOTHING, &wrong_states);
                    /* Before the new input is latched, the old outputs are still there. */
                    if (status == NET_AGAIN && at < 4) expect(right(y, last_level, last), &wrong_outputs);
                    if (status == NET_NOTHING || at < 4) {
                        net_switch(level);
                        expect(net_run(x, y) == NET_OK, &wrong_states);
                    }
                }
                expect(right(y, level, n), &wrong_outputs);
                reset();
                scribble(y, sizeof y);
                expect(net_resume(y) == NET_AGAIN && right(y, level, n), &wrong_outputs);
                last_level = level;
                last = n;
            }
        }
    }
}

int main(void) {
    switches();
    inferences();
    printf("%lu %lu %lu %lu\n", failures[0], failures[1], wrong_states, wrong_outputs);
    return wrong_states + wrong_outputs != 0;
}
