/* The net on a computer. Without an argument: prints how many outputs differ from the golden ones. With a level: inputs
 * from stdin, outputs to stdout, both as they lie in memory. The two functions at the top are what a device has to
 * provide. */
#include <stdio.h>
#include <stdlib.h>

#include "net.h"
#include "net_golden.h"

static uint8_t nvm[NET_RECORD_BYTES];

void net_nvm_write(uint16_t at, uint8_t byte) { nvm[at] = byte; }

uint8_t net_nvm_read(uint16_t at) { return nvm[at]; }

int main(int argc, char **argv) {
    static net_input x[NET_INPUT_SIZE];
    static net_output y[NET_OUTPUT_SIZE];
    static const size_t sizes[NET_LEVELS] = NET_OUTPUT_SIZES;
    net_init();
    if (argc < 2) {
        printf("%ld\n", net_golden());
        return 0;
    }
    const int level = atoi(argv[1]);
    if (level < 0 || level >= NET_LEVELS || net_switch((uint8_t)level) != NET_OK) return 2;
    while (fread(x, sizeof x, 1, stdin) == 1) {
        if (net_run(x, y) != NET_OK || fwrite(y, sizeof *y, sizes[level], stdout) != sizes[level]) return 3;
    }
    return 0;
}
