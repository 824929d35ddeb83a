/* What clang's code for the MSP430 needs: a start, and arithmetic that the 16-bit hardware multiplier has to help with. */
#include <stddef.h>
#include <stdint.h>

#define MPY (*(volatile uint16_t *)0x0130)
#define OP2 (*(volatile uint16_t *)0x0138)
#define RESLO (*(volatile uint16_t *)0x013a)
#define RESHI (*(volatile uint16_t *)0x013c)

int main(void);
extern uint16_t bss_begin[], bss_end[];

/* The simulator stops here. */
__attribute__((noinline)) void finish(void) {
    for (;;) __asm__ volatile("nop");
}

__attribute__((used)) static void begin(void) {
    for (uint16_t *p = bss_begin; p != bss_end; p++) *p = 0;
    main();
    finish();
}

__attribute__((naked, used, section(".start"))) static void start(void) {
    __asm__ volatile("mov #stack, r1\n call #begin\n");
}

__attribute__((used, section(".vectors"))) static void (*const reset)(void) = start;

void *memcpy(void *to, const void *from, size_t size) {
    uint8_t *t = to;
    for (const uint8_t *f = from; size > 0; size--) *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t size) {
    for (uint8_t *t = to; size > 0; size--) *t++ = (uint8_t)byte;
    return to;
}

static inline uint32_t product(uint16_t a, uint16_t b) {
    MPY = a;
    OP2 = b;
    return (uint32_t)RESHI << 16 | RESLO;
}

__attribute__((naked)) void __mspabi_mpyi_hw(void) {
    __asm__ volatile("mov r12, &0x0130\n mov r13, &0x0138\n mov &0x013a, r12\n ret");
}

uint32_t __mspabi_mpyl_hw(uint32_t a, uint32_t b) {
    const uint16_t a1 = (uint16_t)(a >> 16), b1 = (uint16_t)(b >> 16);
    const uint16_t cross = (uint16_t)((uint16_t)product((uint16_t)a, b1) + (uint16_t)product(a1, (uint16_t)b));
    return product((uint16_t)a, (uint16_t)b) + ((uint32_t)cross << 16);
}

/* The low 64 bits, column by column. */
uint64_t __mspabi_mpyll_hw(uint64_t a, uint64_t b) {
    const uint16_t x[4] = {(uint16_t)a, (uint16_t)(a >> 16), (uint16_t)(a >> 32), (uint16_t)(a >> 48)};
    const uint16_t y[4] = {(uint16_t)b, (uint16_t)(b >> 16), (uint16_t)(b >> 32), (uint16_t)(b >> 48)};
    uint16_t z[4];
    uint32_t carry = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t low = carry & 0xffffu, high = carry >> 16;
        for (int j = 0; j <= i; j++) {
            const uint32_t p = product(x[j], y[i - j]);
            low += p & 0xffffu;
            high += p >> 16;
        }
        z[i] = (uint16_t)low;
        carry = high + (low >> 16);
    }
    return (uint64_t)z[3] << 48 | (uint64_t)z[2] << 32 | (uint64_t)z[1] << 16 | z[0];
}

int32_t __mspabi_sral(int32_t a, int n) {
    for (; n >= 8; n -= 8) a >>= 8;
    for (; n > 0; n--) a >>= 1;
    return a;
}

uint32_t __mspabi_srll(uint32_t a, int n) {
    for (; n > 0; n--) a >>= 1;
    return a;
}

uint32_t __mspabi_slll(uint32_t a, int n) {
    for (; n > 0; n--) a <<= 1;
    return a;
}

int64_t __ashrdi3(int64_t a, int n) {
    for (; n >= 16; n -= 16) a >>= 16;
    for (; n > 0; n--) a >>= 1;
    return a;
}

uint64_t __ashldi3(uint64_t a, int n) {
    for (; n >= 16; n -= 16) a <<= 16;
    for (; n > 0; n--) a <<= 1;
    return a;
}

/* Quotient and remainder, truncated; bit by bit. */
static uint64_t divided(uint64_t a, uint64_t b, uint64_t *rest) {
    uint64_t quotient = 0, r = 0;
    for (int i = 0; i < 64; i++) {
        r = r << 1 | a >> 63;
        a <<= 1;
        quotient <<= 1;
        if (r >= b) {
            r -= b;
            quotient |= 1;
        }
    }
    *rest = r;
    return quotient;
}

__attribute__((used)) static int64_t quotient(int64_t a, int64_t b) {
    uint64_t rest;
    const uint64_t q = divided(a < 0 ? -(uint64_t)a : (uint64_t)a, b < 0 ? -(uint64_t)b : (uint64_t)b, &rest);
    return (int64_t)((a < 0) != (b < 0) ? -q : q);
}

__attribute__((used)) static int64_t remainder(int64_t a, int64_t b) {
    uint64_t rest;
    divided(a < 0 ? -(uint64_t)a : (uint64_t)a, b < 0 ? -(uint64_t)b : (uint64_t)b, &rest);
    return (int64_t)(a < 0 ? -rest : rest);
}

/* The numbers come in R8 to R11 and R12 to R15, where C functions want the second one on the stack. */
#define DIVISION(name, function)                                                                          \
    __attribute__((naked)) void name(void) {                                                              \
        __asm__ volatile(                                                                                 \
            "push r15\n push r14\n push r13\n push r12\n mov r8, r12\n mov r9, r13\n mov r10, r14\n"      \
            "mov r11, r15\n call #" #function "\n add #8, r1\n ret");                                     \
    }
DIVISION(__mspabi_divlli, quotient)
DIVISION(__mspabi_remlli, remainder)
