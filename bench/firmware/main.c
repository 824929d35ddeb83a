/* An exported net on a simulated device: the golden vectors, then one inference in each level between two marks.
 *
 * Prints `wrong N`, `written N` (bytes of non-volatile memory of the last switch) and, where the simulator does not count
 * by itself, the counter's steps of a loop of two million instructions and of each level. */
#include "net.h"
#include "net_golden.h"

static uint8_t nvm[NET_RECORD_BYTES];
volatile long wrong, written;
static long writes;

void net_nvm_write(uint16_t at, uint8_t byte) {
    nvm[at] = byte;
    writes++;
}

uint8_t net_nvm_read(uint16_t at) { return nvm[at]; }

#if defined(__MSP430__)
/* The simulator stops here and shows its own counters and what `wrong` and `written` hold. */
__attribute__((noinline)) void mark(void) { __asm__ volatile("nop"); }
#define BEGIN() mark()
#define END(name) mark()
#define SHOW(name, number) ((void)(number))
#define LOOP() ((void)0)
#define START() ((void)0)
#else
#include <stdio.h>
#if defined(__riscv)
#define START() ((void)0)
#define LOOP() __asm__ volatile("1: addi %0, %0, -1\n bnez %0, 1b" : "+r"(n))
static uint32_t now(void) {
    uint32_t n;
    __asm__ volatile("csrr %0, minstret" : "=r"(n));
    return n;
}
static uint32_t since(uint32_t then) { return now() - then; }
#else
/* SysTick counts down 24 bits, at a rate that depends on the machine. */
#define SYSTICK ((volatile uint32_t *)0xe000e010)
#define START() (SYSTICK[1] = 0xffffff, SYSTICK[2] = 0, SYSTICK[0] = 5)
#define LOOP() __asm__ volatile(".syntax unified\n1: subs %0, #1\n bne 1b" : "+l"(n) : : "cc")
static uint32_t now(void) { return SYSTICK[2]; }
static uint32_t since(uint32_t then) { return (then - now()) & 0xffffff; }
#endif
#define BEGIN() const uint32_t begun = now()
#define END(name) printf("%s %lu\n", name, (unsigned long)since(begun))
#define SHOW(name, number) printf("%s %ld\n", name, number)
#endif

int main(void) {
    static const net_input *const inputs[NET_LEVELS] = NET_GOLDEN_INPUTS;
    static net_output y[NET_OUTPUT_SIZE];
    uint32_t n = 1000000;
    (void)n;
    net_init();
    wrong = net_golden();
    SHOW("wrong", wrong);
    net_switch(0);
    writes = 0;
    net_switch(NET_LEVELS - 1);
    written = writes;
    SHOW("written", written);
    START();
    {
        BEGIN();
        LOOP();
        END("loop");
    }
    for (uint8_t level = 0; level < NET_LEVELS; level++) {
        net_switch(level);
        BEGIN();
        net_run(inputs[level], y);
        END("level");
    }
    return 0;
}
