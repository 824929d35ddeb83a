/* What a net offers; net.h has its numbers. One net a program: the names begin with net_. */
#ifndef RH_API_H
#define RH_API_H

/* Bytes. RAM: static, the stack on top; NVM: non-volatile memory that is written. */
#ifdef NET_RESUME
#define NET_RECORD_BYTES 16
#define NET_RAM_BYTES (NET_COLUMN_BYTES + 8)
#define NET_NVM_BYTES (NET_RECORD_BYTES + NET_KEPT_BYTES)
#else
#define NET_RECORD_BYTES 8
#define NET_RAM_BYTES (NET_COLUMN_BYTES + 4 + NET_ARENA_BYTES)
#define NET_NVM_BYTES NET_RECORD_BYTES
#endif

enum {
    NET_OK,
    NET_NO_LEVEL,     /* net_switch: there is no such level; the level is what it was */
    NET_DAMAGED,      /* net_init: one copy of the level is damaged or was cut short; the last good level is in use */
    NET_LOST,         /* net_init: no copy of the level is valid, as on a new device; the largest level is in use */
    NET_WRITE_FAILED, /* non-volatile memory does not hold what was written; the last good state is in use */
    NET_NOTHING,      /* net_resume: no inference was begun */
    NET_AGAIN         /* net_resume: the last inference was finished before; its outputs once more */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Once after each reset, before anything else. */
int net_init(void);

/* Make `level` the one that the next inference runs. Writes four bytes of non-volatile memory (none where the level is in
 * use already, eight on a new device); whenever power fails, the level is the old one or the new one. */
int net_switch(uint8_t level);

uint8_t net_level(void);

/* One inference, in the level of its beginning. */
int net_run(const net_input *x, net_output *y);

#ifdef NET_RESUME
/* After net_init: finish the inference that a power failure interrupted, from the layer that it interrupted. The outputs
 * are those of the last input that net_run had taken over when power failed. */
int net_resume(net_output *y);

/* Where the activations lie: what survives a reset and is not cleared after it, __attribute__((section(".fram"))). */
#ifndef NET_NVM
#define NET_NVM
#endif
#endif

/* Yours to write: bytes 0 ... NET_RECORD_BYTES - 1 of non-volatile memory. A byte is there before the call returns. */
void net_nvm_write(uint16_t at, uint8_t byte);
uint8_t net_nvm_read(uint16_t at);

#ifdef __cplusplus
}
#endif

#endif
