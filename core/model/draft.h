/* The draft that comes with a checkpoint: blocks mtp.0 .. that guess tokens ahead.
 *
 * Which kind it is shows in the tensors' names, which config.json can only confirm: it calls three
 * stages of DSpark one MTP block. */
#ifndef SL_MODEL_DRAFT_H
#define SL_MODEL_DRAFT_H

#include <stdint.h>

#include "core/model/config.h"
#include "core/model/weight_source.h"

enum sl_draft_kind {
    SL_DRAFT_NONE,
    SL_DRAFT_MTP,    /* one block, of the first checkpoints */
    SL_DRAFT_DSPARK, /* stages that guess a block of tokens at once */
    SL_DRAFT_ANY,    /* where one is asked for: whichever there is */
};

struct sl_draft {
    enum sl_draft_kind kind;
    uint32_t n_blocks;    /* with experts of their own: 1, or the stages */
    uint32_t n_targets;   /* DSpark: layers whose outputs it reads; 0 if main_proj says nothing */
    uint32_t markov_rank; /* DSpark: likewise, of its Markov head */
};

/* DSpark: bounds that its parts in memory go by; see struct sl_dspark_config for the block's. */
#define SL_DRAFT_BLOCKS_MAX 16u

/* Finds out from the tensors' headers. Blocks of an unknown kind are SL_DRAFT_NONE. */
struct sl_draft sl_draft_find(const struct sl_config *config, struct sl_weight_source *source);

/* Refuses (-SL_EUNSUPPORTED) a draft that cannot be run since config.json lacks what its tensors do
 * not tell, or tells otherwise. */
int sl_draft_check(const struct sl_draft *draft, const struct sl_config *config, const char *folder,
                   struct sl_err *err);

/* How many of the blocks mtp.0 .. config.json or the draft account for: those beyond are of no
 * use. */
uint32_t sl_draft_blocks_known(const struct sl_draft *draft, const struct sl_config *config);

#endif
