/* The golden vectors against this device; included by net_golden.h, which holds them. */
#ifndef RH_GOLDEN_H
#define RH_GOLDEN_H

/* How many outputs differ, over all levels and vectors; -1 where the net does not run. Leaves the level as it was. */
static inline long net_golden(void) {
    static const net_input *const inputs[NET_LEVELS] = NET_GOLDEN_INPUTS;
    static const net_output *const outputs[NET_LEVELS] = NET_GOLDEN_OUTPUTS;
    static const size_t sizes[NET_LEVELS] = NET_OUTPUT_SIZES;
    static net_output y[NET_OUTPUT_SIZE];
    const uint8_t before = net_level();
    long wrong = 0;
    for (uint8_t level = 0; level < NET_LEVELS; level++) {
        const net_output *want = outputs[level];
        if (net_switch(level) != NET_OK) return -1;
        for (size_t n = 0; n < NET_GOLDEN; n++, want += sizes[level]) {
            NET_GOLDEN_NUMBER largest = 0; /* in which a difference of two outputs fits */
            if (net_run(inputs[level] + n * NET_INPUT_SIZE, y) != NET_OK) return -1;
            for (size_t i = 0; i < sizes[level]; i++) {
                const NET_GOLDEN_NUMBER size = want[i] < 0 ? -(NET_GOLDEN_NUMBER)want[i] : want[i];
                largest = size > largest ? size : largest;
            }
            for (size_t i = 0; i < sizes[level]; i++) {
                const NET_GOLDEN_NUMBER error = (NET_GOLDEN_NUMBER)y[i] - (NET_GOLDEN_NUMBER)want[i];
                wrong += !((error < 0 ? -error : error) <= NET_GOLDEN_TOLERANCE * largest);
            }
        }
    }
    return net_switch(before) == NET_OK ? wrong : -1;
}

#endif
