/* sluice inspect: shows the contents of a checkpoint folder or a store, and the memory that it
 * takes. It only reads headers or the catalog; for a config alone, it computes sizes. */
#include <argp.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/size.h"
#include "core/model/model_folder.h"
#include "core/model/weights.h"
#include "core/text/chat_profile.h"
#include "daemon/engine/model_check.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/config_file.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/huge_pages.h"
#include "tools/cmd/inspect_lists.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/model_profile.h"
#include "tools/plan/plan_sizes.h"

#define CONTEXT_TOKENS_DEFAULT 8192u

struct arguments {
    struct sl_engine_options engine;
    bool tensors;
    bool experts;
    bool json;
};

/* Everything that is printed about a model as a whole. */
struct summary {
    const char *kind; /* "checkpoint", "store", or "config" */
    struct sl_config config;
    struct sl_disk_sizes disk; /* of a store, without what compression saves */
    uint32_t n_experts;        /* of a store; else 0 */
    bool compressed;
    uint64_t saved_bytes; /* by compression */
    struct sl_unused_tensors unused;
    struct sl_draft draft;
    struct sl_chat_profile_found chat; /* of a folder; else without a file */
    struct sl_memory_plan plan;
    int verdict;       /* whether the plan fits, */
    struct sl_err why; /* and if not, why */
};

enum { OPTION_JSON = 256 };

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    (void)arg;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &arguments->engine;
        state->child_inputs[1] = &arguments->engine;
        return 0;
    case 't':
        arguments->tensors = true;
        return 0;
    case 'e':
        arguments->experts = true;
        return 0;
    case OPTION_JSON:
        arguments->json = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- finding it out ----------------------------------------------------------------------------
 */

static void find_disk_sizes(const struct sl_model_files *files, struct summary *s)
{
    const struct sl_store *store = files->store;

    s->kind = store ? "store" : "checkpoint";
    if (!store) {
        s->disk.n_files = sl_checkpoint_file_count(files->checkpoint);
        s->disk.n_tensors = sl_checkpoint_tensor_count(files->checkpoint);
        for (uint32_t i = 0; i < s->disk.n_tensors; i++)
            s->disk.n_bytes += sl_checkpoint_tensor_at(files->checkpoint, i)->info.size_bytes;
        return;
    }
    s->compressed = sl_store_layout_compresses(sl_store_model(store)->layout);
    s->saved_bytes = sl_store_saved_bytes(store);
    s->n_experts = sl_store_expert_count(&sl_store_model(store)->shape);
    s->disk.n_files = sl_store_file_count(store);
    s->disk.n_tensors = sl_store_model(store)->n_tensors;
    for (uint32_t i = 0; i < s->disk.n_files; i++)
        s->disk.n_bytes += sl_store_file(store, i)->size_bytes;
    s->disk.n_bytes -= s->saved_bytes;
}

/* The draft is checked too, which running leaves aside. */
static int find_unused(const struct sl_model_files *files, struct summary *s, struct sl_err *err)
{
    struct sl_weight_source *weights = sl_model_files_weights(files, false);
    struct sl_expert_map *experts;
    struct sl_expert_shape shape;
    struct sl_dense_list dense;
    int rc;

    s->draft = sl_draft_find(&s->config, weights);
    shape = sl_expert_shape_of(&s->config, s->draft.n_blocks);
    rc = sl_model_files_experts(files, &shape, &experts, err);
    if (rc < 0)
        return rc;
    s->config.expert_dtype = sl_expert_map_shape(experts)->expert_dtype;
    sl_expert_map_close(experts);
    rc = sl_dense_list_make(&dense, &s->config, weights, &s->draft, err);
    if (rc < 0)
        return rc;
    rc = sl_model_check(files, &s->config, &dense, &s->unused, err);
    sl_dense_list_fini(&dense);
    return rc;
}

/* A model that would not fit is no error here, and is reported in the last line. */
static int summarize_files(const struct sl_engine_options *options,
                           const struct sl_model_files *files, struct summary *s,
                           struct sl_err *err)
{
    int rc = sl_engine_plan(options, &s->plan, &s->verdict, &s->why);

    if (rc < 0) {
        *err = s->why;
        return rc;
    }
    find_disk_sizes(files, s);
    rc = sl_model_profile(options->model, &s->chat, err);
    return rc < 0 ? rc : find_unused(files, s, err);
}

static int summarize_config(const struct sl_engine_options *options, struct summary *s,
                            struct sl_err *err)
{
    struct sl_memory_case what = {
        .ram_bytes = options->ram_bytes,
        .cache_bytes = options->cache_bytes,
        .cache_min = options->cache_min,
        .dense_mode = options->dense,
        .refuse_slow = options->refuse_slow,
        .numerics = options->numerics,
        .n_threads = options->affinity.n_threads,
        .segment_tokens = options->segment_tokens,
        .context_tokens = options->context_tokens,
        .n_sequences = options->n_sequences,
        .kv_bytes = options->kv_bytes,
    };
    struct sl_weight_sizes dense;
    struct sl_dense_cost cost;
    int rc;

    s->kind = "config";
    what.dense = &dense;
    if (options->drafts > 0)
        what.draft = &s->draft;
    if ((rc = sl_plan_dense(&s->config, what.draft ? &s->draft : NULL, &cost, &dense, err)) < 0 ||
        (rc = sl_plan_disk(&s->config, &s->disk, err)) < 0)
        return rc;
    s->verdict = sl_plan_memory(&s->config, &what, &s->plan, &s->why);
    return 0;
}

/* ---- saying it ---------------------------------------------------------------------------------
 */

struct layer_kinds {
    uint32_t n_window, n_csa, n_hca;
};

static struct layer_kinds count_kinds(const struct sl_config *c)
{
    struct layer_kinds kinds = {0};

    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        kinds.n_window += c->compress_ratios[i] == 0;
        kinds.n_csa += c->compress_ratios[i] == SL_CSA_RATIO;
    }
    kinds.n_hca = c->num_hidden_layers - kinds.n_window - kinds.n_csa;
    return kinds;
}

static void print_config(const struct sl_config *c)
{
    const struct layer_kinds kinds = count_kinds(c);

    printf("model\n");
    printf("  layers           %u: %u sliding window, %u CSA, %u HCA; %u hash-routed; %u MTP\n",
           c->num_hidden_layers, kinds.n_window, kinds.n_csa, kinds.n_hca, c->num_hash_layers,
           c->num_nextn_predict_layers);
    printf("  hidden size      %u in %u residual stream%s\n", c->hidden_size, c->hc_mult,
           sl_plural(c->hc_mult));
    printf("  attention        %u head%s of %u, window %u, top %u entries\n",
           c->num_attention_heads, sl_plural(c->num_attention_heads), c->head_dim,
           c->sliding_window, c->index_topk);
    printf("  experts          %u per layer of width %u, %s, %u for each token\n",
           c->n_routed_experts, c->moe_intermediate_size,
           c->expert_dtype == SL_EXPERT_FP8 ? "FP8" : "FP4", c->num_experts_per_tok);
    printf("  vocabulary       %u\n", c->vocab_size);
    printf("  longest context  %u tokens\n", c->max_position_embeddings);
    if (!c->model_type[0])
        printf("  model type       not in config.json, taken for " SL_MODEL_TYPE "\n");
    if (c->unknown_keys[0])
        printf("  keys not known   %s\n", c->unknown_keys);
}

static void print_draft(const struct summary *s)
{
    const struct sl_draft *draft = &s->draft;
    const struct sl_dspark_config *dspark = &s->config.dspark;

    if (draft->kind == SL_DRAFT_MTP)
        printf("  draft            an MTP block\n");
    if (draft->kind != SL_DRAFT_DSPARK)
        return;
    printf("  draft            DSpark: %u stages, Markov rank %u", draft->n_blocks,
           draft->markov_rank);
    if (dspark->block_size > 0)
        printf(", blocks of %u tokens", dspark->block_size);
    for (uint32_t i = 0; i < dspark->n_targets; i++)
        printf("%s %u", i ? "," : ", reads layers", dspark->target_layer_ids[i]);
    printf("%s\n", sl_draft_check(draft, &s->config, "", NULL) < 0
                       ? "; cannot be run, since its sizes are not all told"
                       : "");
}

static void print_disk(const struct summary *s)
{
    char text[SL_SIZE_TEXT_BYTES];

    printf("  on disk          %s ", sl_size_format(s->disk.n_bytes, text));
    if (s->n_experts > 0)
        printf("packed: %u tensor%s, %u expert%s, %u file%s\n", s->disk.n_tensors,
               sl_plural(s->disk.n_tensors), s->n_experts, sl_plural(s->n_experts), s->disk.n_files,
               sl_plural(s->disk.n_files));
    else
        printf("in %u tensor%s, %u file%s%s\n", s->disk.n_tensors, sl_plural(s->disk.n_tensors),
               s->disk.n_files, sl_plural(s->disk.n_files),
               strcmp(s->kind, "config") == 0 ? ", computed from the config" : "");
    if (s->compressed)
        printf("  compressed       %s less than without\n", sl_size_format(s->saved_bytes, text));
    if (s->unused.n > 0)
        printf("  not used         %u tensor%s, such as %s\n", s->unused.n, sl_plural(s->unused.n),
               s->unused.first);
}

static void print_text(const struct arguments *arguments, const struct summary *s)
{
    const double huge_share = sl_huge_pages_share();
    char slow[SL_SLOW_TEXT_BYTES];
    char text[SL_SIZE_TEXT_BYTES];

    print_config(&s->config);
    print_draft(s);
    if (s->chat.file)
        printf("  chat format      %s, by %s\n", sl_chat_profile_found_name(&s->chat),
               s->chat.file);
    print_disk(s);
    sl_memory_plan_print(&s->plan, stdout);
    printf("compute\n  ");
    sl_affinity_print(&arguments->engine.affinity, stdout);
    putchar('\n');
    if (huge_share >= 0)
        printf("  huge pages: %.0f %% of %s tried\n", 100 * huge_share,
               sl_size_format(SL_HUGE_TRIAL_BYTES, text));
    if (s->verdict == 0 && sl_memory_plan_is_slow(&s->plan))
        printf("slow: %s\n", sl_memory_plan_tell_slow(&s->plan, 0, slow));
    if (s->verdict < 0)
        printf("does not fit: %s\n", s->why.message);
}

static void add(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *config_json(const struct sl_config *c)
{
    const struct layer_kinds kinds = count_kinds(c);
    json_t *object = json_object();

    json_object_set_new(object, "model_type", json_string(c->model_type));
    add(object, "layers", c->num_hidden_layers);
    add(object, "sliding_window_layers", kinds.n_window);
    add(object, "csa_layers", kinds.n_csa);
    add(object, "hca_layers", kinds.n_hca);
    add(object, "hash_routed_layers", c->num_hash_layers);
    add(object, "mtp_blocks", c->num_nextn_predict_layers);
    add(object, "hidden_size", c->hidden_size);
    add(object, "residual_streams", c->hc_mult);
    add(object, "attention_heads", c->num_attention_heads);
    add(object, "head_dim", c->head_dim);
    add(object, "window_tokens", c->sliding_window);
    add(object, "index_topk", c->index_topk);
    add(object, "experts_per_layer", c->n_routed_experts);
    add(object, "expert_width", c->moe_intermediate_size);
    add(object, "experts_per_token", c->num_experts_per_tok);
    json_object_set_new(object, "expert_dtype", json_string(sl_expert_dtype_name(c->expert_dtype)));
    add(object, "vocabulary", c->vocab_size);
    add(object, "context_tokens_max", c->max_position_embeddings);
    json_object_set_new(object, "unknown_keys", json_string(c->unknown_keys));
    return object;
}

static json_t *draft_json(const struct summary *s)
{
    static const char *const kinds[] = {
        [SL_DRAFT_NONE] = "none", [SL_DRAFT_MTP] = "mtp", [SL_DRAFT_DSPARK] = "dspark"};
    const struct sl_dspark_config *dspark = &s->config.dspark;
    json_t *object = json_object(), *targets = json_array();

    json_object_set_new(object, "kind", json_string(kinds[s->draft.kind]));
    add(object, "blocks", s->draft.n_blocks);
    add(object, "markov_rank", s->draft.markov_rank);
    add(object, "block_size", dspark->block_size);
    for (uint32_t i = 0; i < dspark->n_targets; i++)
        json_array_append_new(targets, json_integer(dspark->target_layer_ids[i]));
    json_object_set_new(object, "target_layers", targets);
    return object;
}

static json_t *plan_json(const struct summary *s)
{
    const struct sl_memory_plan *plan = &s->plan;
    json_t *object = json_object(), *needs = json_object();

    for (int i = 0; i < SL_MEMORY_USERS; i++)
        add(needs, sl_memory_user_name((enum sl_memory_user)i), plan->need_bytes[i]);
    json_object_set_new(object, "bytes", needs);
    add(object, "together_bytes", sl_memory_plan_bytes(plan));
    add(object, "budget_bytes", plan->budget_bytes);
    add(object, "slot_bytes", plan->slot_bytes);
    add(object, "slots", plan->need_bytes[SL_MEMORY_CACHE] / plan->slot_bytes);
    add(object, "slots_min", plan->slots_min);
    add(object, "slots_max", plan->slots_max);
    add(object, "context_tokens", plan->context_tokens);
    add(object, "segment_tokens", plan->segment_tokens);
    add(object, "layers_streamed", plan->dense.n_streamed);
    add(object, "streamed_bytes", plan->streamed_bytes);
    json_object_set_new(object, "fits", json_boolean(s->verdict == 0));
    if (s->verdict < 0)
        json_object_set_new(object, "why", json_string(s->why.message));
    return object;
}

static void print_json(const struct arguments *arguments, const struct summary *s)
{
    json_t *object = json_object();

    json_object_set_new(object, "model", json_string(arguments->engine.model));
    json_object_set_new(object, "kind", json_string(s->kind));
    json_object_set_new(object, "config", config_json(&s->config));
    json_object_set_new(object, "draft", draft_json(s));
    add(object, "disk_bytes", s->disk.n_bytes);
    add(object, "tensors", s->disk.n_tensors);
    add(object, "files", s->disk.n_files);
    add(object, "unused_tensors", s->unused.n);
    if (s->chat.file)
        json_object_set_new(object, "chat_format",
                            json_pack("{s:s, s:s}", "profile", sl_chat_profile_found_name(&s->chat),
                                      "by", s->chat.file));
    if (s->compressed)
        add(object, "saved_bytes", s->saved_bytes);
    json_object_set_new(object, "memory", plan_json(s));
    add(object, "threads", arguments->engine.affinity.n_threads);
    json_object_set_new(object, "huge_page_share", json_real(sl_huge_pages_share()));
    sl_json_line_print(object);
}

static int print_summary(struct arguments *arguments, const struct sl_model_files *files,
                         struct summary *s, struct sl_err *err)
{
    const uint32_t longest = s->config.max_position_embeddings;
    int rc;

    if (arguments->engine.context_tokens == 0)
        arguments->engine.context_tokens =
            longest < CONTEXT_TOKENS_DEFAULT ? longest : CONTEXT_TOKENS_DEFAULT;
    rc = files->store || files->checkpoint ? summarize_files(&arguments->engine, files, s, err)
                                           : summarize_config(&arguments->engine, s, err);
    if (rc < 0)
        return rc;
    if (arguments->json)
        print_json(arguments, s);
    else
        print_text(arguments, s);
    return 0;
}

/* ---- the command -------------------------------------------------------------------------------
 */

static int inspect_config(struct arguments *arguments, struct sl_err *err)
{
    const struct sl_model_files none = {0};
    struct summary summary = {0};
    int rc = sl_config_file_read(arguments->engine.model, &summary.config, NULL, err);

    if (rc < 0)
        return rc;
    if (arguments->tensors || arguments->experts)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: a config alone; --tensors and --experts list what is in a "
                          "checkpoint's or a store's folder",
                          arguments->engine.model);
    return print_summary(arguments, &none, &summary, err);
}

static int inspect_files(struct arguments *arguments, struct sl_model_files *files,
                         struct sl_err *err)
{
    struct summary summary = {0};
    int rc = 0;

    /* Tensors can be listed for any safetensors files, whatever their model. */
    if (arguments->experts || !arguments->tensors)
        rc = sl_config_read(&summary.config, arguments->engine.model, err);
    if (rc < 0 || (rc = sl_model_files_open(files, arguments->engine.model, err)) < 0)
        return rc;
    if (arguments->tensors)
        sl_inspect_tensors(files, arguments->json);
    if (arguments->experts)
        rc = sl_inspect_experts(files, &summary.config, arguments->json, err);
    if (arguments->tensors || arguments->experts)
        return rc;
    return print_summary(arguments, files, &summary, err);
}

int sl_cmd_inspect(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"tensors", 't', NULL, 0, "list all tensors: name, dtype, shape, file, offset, bytes", 0},
        {"experts", 'e', NULL, 0,
         "list the layers' experts: number, bytes of one, reads it takes (as whole blocks, "
         "neighbours merged), bytes these read, files",
         0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object, or one a line of a list", 0},
        {0}};
    static const struct argp_child children[] = {
        {&sl_engine_argp, 0, "The memory it would take to run with:", 1},
        {&sl_draft_argp, 0, NULL, 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL|CONFIG.json",
        .doc = "Shows what MODEL, a checkpoint folder or a store, holds and what memory it needs, "
               "without reading its data. Of a CONFIG.json alone, or the name of one that comes "
               "with sluice such as v4-pro, sizes are computed.",
        .children = children};
    struct arguments arguments = {0};
    struct sl_model_files files = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &arguments);
    rc = sl_config_file_is(arguments.engine.model) ? inspect_config(&arguments, &err)
                                                   : inspect_files(&arguments, &files, &err);
    sl_model_files_close(&files);
    return sl_command_status(rc, &err);
}
