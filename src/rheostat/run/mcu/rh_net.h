/* Switching, running and resuming: what net.h declares, for any net. Included once, at the end of net.c. */
#ifndef RH_NET_H
#define RH_NET_H

/* A byte in non-volatile memory that changes as a whole. Two slots of four bytes (sequence, value, CRC-16) take turns;
 * the newer valid one counts. A slot is written from its first byte to its last. Whatever power failure leaves of it
 * differs from the old slot or from the new one within 16 neighbouring bits, which a CRC-16 always detects: the slot is
 * the old one, the new one, or not valid. */
typedef struct {
    uint8_t sequence, value, slot, valid;
} rh_record;

enum { RH_SLOT_BYTES = 4, RH_RECORD_BYTES = 2 * RH_SLOT_BYTES };

/* CRC-16/CCITT of two bytes. It begins with a number of this net, so that another net's record is not valid here. */
static uint16_t rh_crc(uint8_t sequence, uint8_t value) {
    const uint8_t bytes[2] = {sequence, value};
    uint16_t crc = NET_ID;
    for (int i = 0; i < 2; i++) {
        crc = (uint16_t)(crc ^ (uint16_t)((uint16_t)bytes[i] << 8));
        for (int bit = 0; bit < 8; bit++)
            crc = (uint16_t)((uint16_t)(crc << 1) ^ ((crc & 0x8000u) != 0 ? 0x1021u : 0u));
    }
    return crc;
}

static int rh_slot_valid(uint16_t at, uint8_t limit, rh_record *found) {
    found->sequence = net_nvm_read(at);
    found->value = net_nvm_read((uint16_t)(at + 1));
    const uint16_t crc = (uint16_t)((uint16_t)(net_nvm_read((uint16_t)(at + 2)) << 8) | net_nvm_read((uint16_t)(at + 3)));
    return found->value < limit && crc == rh_crc(found->sequence, found->value);
}

/* The newest value below `limit`, or `otherwise`. */
static rh_record rh_record_read(uint16_t at, uint8_t limit, uint8_t otherwise) {
    rh_record best = {0, otherwise, 1, 0};
    for (uint8_t slot = 0; slot < 2; slot++) {
        rh_record found;
        if (!rh_slot_valid((uint16_t)(at + slot * RH_SLOT_BYTES), limit, &found)) continue;
        if (best.valid == 0 || (uint8_t)(found.sequence - best.sequence) < 128) {
            best.sequence = found.sequence;
            best.value = found.value;
            best.slot = slot;
        }
        best.valid++;
    }
    return best;
}

/* Writes the older slot, and both where none was valid; on failure the newest value stays. What was stored before is in
 * memory before the record says so. */
static int rh_record_write(rh_record *record, uint16_t at, uint8_t value) {
    do {
        const uint8_t slot = (uint8_t)(1 - record->slot), sequence = (uint8_t)(record->sequence + 1);
        const uint16_t crc = rh_crc(sequence, value), to = (uint16_t)(at + slot * RH_SLOT_BYTES);
        const uint8_t bytes[RH_SLOT_BYTES] = {sequence, value, (uint8_t)(crc >> 8), (uint8_t)crc};
        RH_BARRIER();
        for (uint8_t i = 0; i < RH_SLOT_BYTES; i++) net_nvm_write((uint16_t)(to + i), bytes[i]);
        for (uint8_t i = 0; i < RH_SLOT_BYTES; i++) {
            if (net_nvm_read((uint16_t)(to + i)) != bytes[i]) {
                record->valid = record->valid > 0;
                return NET_WRITE_FAILED;
            }
        }
        RH_BARRIER();
        record->sequence = sequence;
        record->value = value;
        record->slot = slot;
        record->valid++;
    } while (record->valid < 2);
    record->valid = 2;
    return NET_OK;
}

/* Lost when power fails. */
static struct {
    rh_record level;
#ifdef NET_RESUME
    rh_record step;
#endif
} net_state;
static rh_element net_column[NET_COLUMN];

#ifdef NET_RESUME
/* Kept when power fails, with what net_nvm_write wrote: the start-up code must not clear it. */
static NET_NVM struct {
    rh_element arena[NET_ARENA];
    uint8_t level;
} net_kept;
#define net_arena net_kept.arena
#else
static rh_element net_arena[NET_ARENA];
#endif

int net_init(void) {
    net_state.level = rh_record_read(0, NET_LEVELS, NET_LEVELS - 1);
#ifdef NET_RESUME
    net_state.step = rh_record_read(RH_RECORD_BYTES, NET_STEPS + 2, 0);
#endif
    return net_state.level.valid == 2 ? NET_OK : net_state.level.valid == 1 ? NET_DAMAGED : NET_LOST;
}

int net_switch(uint8_t level) {
    if (level >= NET_LEVELS) return NET_NO_LEVEL;
    if (level == net_state.level.value && net_state.level.valid == 2) return NET_OK;
    return rh_record_write(&net_state.level, 0, level);
}

uint8_t net_level(void) { return net_state.level.value; }

#ifdef NET_RESUME
/* Step 0: nothing to resume. Step s: layer s - 1 is next. Step NET_STEPS + 1: the outputs are there. */
static int net_at(uint8_t step) { return rh_record_write(&net_state.step, RH_RECORD_BYTES, step); }

int net_run(const net_input *x, net_output *y) {
    /* The level and the input are overwritten only when the record says that nobody needs them. */
    if (net_state.step.value != 0 || net_state.step.valid < 2) {
        if (net_at(0) != NET_OK) return NET_WRITE_FAILED;
    }
    net_kept.level = net_state.level.value;
    memcpy(net_arena + NET_INPUT_AT, x, NET_INPUT_SIZE * sizeof(rh_element));
    return net_at(1) != NET_OK ? NET_WRITE_FAILED : net_resume(y);
}

int net_resume(net_output *y) {
    const int status = net_state.step.value <= NET_STEPS ? NET_OK : NET_AGAIN;
    if (net_state.step.value == 0) return NET_NOTHING;
    if (net_kept.level >= NET_LEVELS) return NET_LOST;
    while (net_state.step.value <= NET_STEPS) {
        net_layer(net_arena, net_column, (uint8_t)(net_state.step.value - 1), net_kept.level);
        if (net_at((uint8_t)(net_state.step.value + 1)) != NET_OK) return NET_WRITE_FAILED;
    }
    net_read(net_arena, net_kept.level, y);
    return status;
}
#else
int net_run(const net_input *x, net_output *y) {
    const uint8_t level = net_state.level.value; /* a switch during an inference is for the next one */
    memcpy(net_arena + NET_INPUT_AT, x, NET_INPUT_SIZE * sizeof(rh_element));
    for (uint8_t step = 0; step < NET_STEPS; step++) net_layer(net_arena, net_column, step, level);
    net_read(net_arena, level, y);
    return NET_OK;
}
#endif

#endif
