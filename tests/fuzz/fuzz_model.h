/* The model that fuzzed batches are for: a small vocabulary and the chat format. */
#ifndef SL_TESTS_FUZZ_FUZZ_MODEL_H
#define SL_TESTS_FUZZ_FUZZ_MODEL_H

#include "core/base/assert.h"
#include "daemon/answer/answer.h"

/* Opened once: reading it takes longer than all else. */
static struct sl_tokenizer *tok;
static struct sl_config config = {.bos_token_id = 0, .eos_token_id = 1};
static struct sl_answer_model model;
static const char *const names[] = {"m"};

static void open_model(void)
{
    if (tok)
        return;
    sl_assert(sl_tokenizer_open(&tok, "tests/data/tokenizer.json", NULL) == 0);
    config.vocab_size = (uint32_t)sl_tokenizer_id_count(tok);
    model = (struct sl_answer_model){
        .tok = tok, .config = &config, .context_tokens = 1000, .names = names, .n_names = 1};
    model.profile.is_chat = true;
    sl_assert(sl_chat_profile_find(&model.profile.profile, "v4-0731", NULL) == 0);
}

#endif
