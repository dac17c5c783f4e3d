/* Random tensor data as a function of the position: any thread can make any range of a tensor on
 * its own, and gets the same bytes however the tensor is divided. Nothing here allocates or
 * fails. */
#ifndef SL_TOOLS_SYNTH_SYNTH_FILL_H
#define SL_TOOLS_SYNTH_SYNTH_FILL_H

#include <stddef.h>
#include <stdint.h>

enum sl_synth_kind {
    SL_SYNTH_FP4,     /* two e2m1 codes a byte, all sixteen alike likely */
    SL_SYNTH_FP8,     /* e4m3 codes of a normal distribution; never NaN */
    SL_SYNTH_SCALE,   /* E8M0 bytes over four binades; the mean of the squares is `spread`^2 */
    SL_SYNTH_BF16,    /* normal, `mean` and standard deviation `spread` */
    SL_SYNTH_F32,     /* float32, normal, `mean` and standard deviation `spread` */
    SL_SYNTH_UNIFORM, /* F32, between `mean` - `spread` and `mean` + `spread` */
    SL_SYNTH_BYTES,   /* a copy of `bytes` */
};

struct sl_synth_values {
    enum sl_synth_kind kind;
    uint64_t key; /* of the tensor's own stream of random numbers */
    float mean;
    float spread;
    const uint8_t *bytes; /* the whole tensor's, for SL_SYNTH_BYTES */
};

#define SL_SYNTH_NORMALS 4096u /* a power of two */

/* Tables that are made once and then only read, by any thread. */
struct sl_synth_tables {
    float normal[SL_SYNTH_NORMALS]; /* samples of mean 0 and variance 1, ascending */
    uint8_t e4m3[256];              /* 256 quantiles of a normal distribution */
    float fp4_rms, fp8_rms;         /* root mean square of what the codes stand for */
};

void sl_synth_tables_init(struct sl_synth_tables *tables);

/* Returns a well-mixed function of key and counter. */
uint64_t sl_synth_mix(uint64_t key, uint64_t counter);

/* Writes bytes offset .. offset + size of the tensor's data to dst. */
void sl_synth_fill(const struct sl_synth_tables *tables, const struct sl_synth_values *values,
                   uint64_t offset_bytes, size_t size_bytes, uint8_t *dst);

#endif
