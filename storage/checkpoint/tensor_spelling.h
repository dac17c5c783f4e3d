/* Tensors of repacks that are spelled another way than in the release, brought back to its
 * spelling: names with a "model." in front, modules called self_attn and mlp, scales called
 * weight_scale_inv, the router's bias called e_score_correction_bias; and bytes called U8 where
 * they are FP4 codes or E8M0 scales. Everything behind the checkpoint then knows one spelling. */
#ifndef SL_STORAGE_CHECKPOINT_TENSOR_SPELLING_H
#define SL_STORAGE_CHECKPOINT_TENSOR_SPELLING_H

#include "core/model/weight_source.h"

/* Respells the name in place; it never becomes longer. */
void sl_tensor_respell_name(char *name);

/* Respells the type of the tensor of that name, which is in the release's spelling. */
void sl_tensor_respell_type(const char *name, struct sl_tensor_info *info);

#endif
