/* The model that an engine runs: its config, which draft it has, and where its weights and experts
 * lie. What is to be told of them is noted; nothing is loaded. */
#include <string.h>

#include "daemon/engine/engine_internal.h"
#include "daemon/engine/model_check.h"
#include "storage/pack/store_identity.h"

static int read_config(struct sl_engine *e, struct sl_err *err)
{
    int rc = sl_config_read(&e->config, e->options.model, err);

    if (rc == 0 && !e->options.any_model_type)
        rc = sl_config_check_model_type(&e->config, e->options.model, err);
    return rc;
}

/* Guesses need the draft that there is. A block of MTP that compresses, as no released one does,
 * cannot begin behind a prompt's first tokens, and so makes none. */
static void choose_draft(struct sl_engine *e)
{
    const struct sl_config *c = &e->config;
    struct sl_engine_options *o = &e->options;
    const bool guesses =
        e->draft.kind == SL_DRAFT_DSPARK ||
        (e->draft.kind == SL_DRAFT_MTP && c->compress_ratios[c->num_hidden_layers] == 0);

    if (o->drafts == SL_DRAFTS_AUTO && !guesses)
        o->drafts = 0;
    if (o->drafts > 0 && o->draft == SL_DRAFT_NONE)
        o->draft = guesses ? e->draft.kind : SL_DRAFT_ANY;
}

/* Finds the draft, which must be the one that was asked for. One that is left aside is told where
 * it would be of use. */
static int check_draft(struct sl_engine *e, struct sl_err *err)
{
    enum sl_draft_kind wanted;

    e->draft = sl_draft_find(&e->config, e->source);
    choose_draft(e);
    wanted = e->options.draft;
    if (wanted != SL_DRAFT_NONE &&
        (wanted == SL_DRAFT_ANY ? e->draft.kind == SL_DRAFT_NONE : e->draft.kind != wanted))
        return sl_err_set(err, -SL_EUNSUPPORTED, "%s: no %s of a kind that this engine knows",
                          e->options.model, wanted == SL_DRAFT_MTP ? "MTP block" : "draft");
    if (wanted != SL_DRAFT_NONE)
        return sl_draft_check(&e->draft, &e->config, e->options.model, err);
    if (e->draft.kind == SL_DRAFT_DSPARK)
        sl_engine_add_note(
            e,
            "the model's draft, %u stages of DSpark, is not run; it would change the speed "
            "alone",
            e->draft.n_blocks);
    if (e->draft.kind == SL_DRAFT_NONE && e->config.num_nextn_predict_layers > 0)
        sl_engine_add_note(e, "MTP blocks of a kind unknown to this engine are not used");
    return 0;
}

/* Refuses tensors that the config has no place for, and adds a note about those that nothing
 * uses. */
static int check_tensors(struct sl_engine *e, struct sl_err *err)
{
    struct sl_unused_tensors unused;
    struct sl_dense_list dense;
    int rc = sl_dense_list_make(&dense, &e->config, e->source, sl_engine_loaded_draft(e), err);

    if (rc < 0)
        return rc;
    rc = sl_model_check(&e->files, &e->config, &dense, &unused, err);
    sl_dense_list_fini(&dense);
    if (rc < 0 || unused.n == 0)
        return rc;
    sl_engine_add_note(e, "%u tensor%s not used, such as %s", unused.n,
                       unused.n == 1 ? " is" : "s are", unused.first);
    return 0;
}

/* Another config would run as another model, with the weights of this one. */
static int check_packed_config(const struct sl_store *store, struct sl_err *err)
{
    for (uint32_t i = 0; i < sl_store_copied_file_count(store); i++)
        if (strcmp(sl_store_copied_file(store, i)->name, "config.json") == 0)
            return sl_copied_file_check(store, i, err);
    return 0;
}

/* Finds the experts, whose tensors settle their dtype: some copies of config.json lack it, or say
 * another. Then it is known what is to be told of the config. */
static int open_experts(struct sl_engine *e, struct sl_err *err)
{
    const struct sl_expert_shape shape =
        sl_expert_shape_of(&e->config, sl_engine_draft_block_count(e));
    char note[SL_CONFIG_NOTE_BYTES];
    int rc = sl_model_files_experts(&e->files, &shape, &e->store, err);

    if (rc < 0)
        return rc;
    e->config.expert_dtype = sl_expert_map_shape(e->store)->expert_dtype;
    for (uint32_t i = 0; sl_config_note(&e->config, i, note); i++)
        sl_engine_add_note(e, "%s", note);
    return 0;
}

/* Opens the files that the plan's sizes come from: config, headers, and where the experts lie. */
int sl_engine_open_model(struct sl_engine *e, struct sl_err *err)
{
    int rc;

    if ((rc = read_config(e, err)) < 0 ||
        (rc = sl_model_files_open(&e->files, e->options.model, err)) < 0 ||
        (e->files.store && (rc = check_packed_config(e->files.store, err)) < 0))
        return rc;
    e->source = sl_model_files_weights(&e->files, e->options.verify != SL_VERIFY_NEVER);
    rc = check_draft(e, err);
    if (rc == 0)
        rc = open_experts(e, err);
    return rc < 0 ? rc : check_tensors(e, err);
}
