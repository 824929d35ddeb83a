/* One inference that survives power failures, for a simulator that cuts power wherever it likes. Compiled with NET_RESUME;
 * what lies in .kept survives. `wrong` is -1 until the outputs are there, then how many of them are not the golden ones. */
#include "net.h"
#include "net_golden.h"

__attribute__((section(".kept"))) uint8_t nvm[NET_RECORD_BYTES];
__attribute__((section(".kept"))) volatile int32_t wrong;

void net_nvm_write(uint16_t at, uint8_t byte) { nvm[at] = byte; }
uint8_t net_nvm_read(uint16_t at) { return nvm[at]; }

int main(void) {
    static const net_input *const inputs[NET_LEVELS] = NET_GOLDEN_INPUTS;
    static const net_output *const outputs[NET_LEVELS] = NET_GOLDEN_OUTPUTS;
    static const size_t sizes[NET_LEVELS] = NET_OUTPUT_SIZES;
    static net_output y[NET_OUTPUT_SIZE];
    net_init();
    net_switch(1);
    if (net_resume(y) == NET_NOTHING) net_run(inputs[1], y);
    int32_t differ = 0;
    for (size_t i = 0; i < sizes[1]; i++) differ += y[i] != outputs[1][i];
    wrong = differ;
    return 0;
}
