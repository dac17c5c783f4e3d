/* sluice inspect: what a checkpoint folder or a store holds and where. Reads headers, or the
 * catalog, only. */
#include <argp.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/model/config.h"
#include "core/model/weights.h"
#include "storage/model_files.h"
#include "storage/safetensors.h"
#include "tools/command_line.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/huge_pages.h"

#define CONTEXT_TOKENS_DEFAULT 8192u

struct arguments {
    struct sl_engine_options engine;
    bool tensors;
    bool experts;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    (void)arg;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &arguments->engine;
        return 0;
    case 't':
        arguments->tensors = true;
        return 0;
    case 'e':
        arguments->experts = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1; /* a model's paths are folder/name */
}

static void print_checkpoint_tensors(const struct sl_checkpoint *checkpoint)
{
    char text[SL_TENSOR_TEXT_BYTES];

    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(checkpoint, i);

        printf("%-44s %-24s %s %llu %llu\n", tensor->name, sl_tensor_format(&tensor->info, text),
               base_name(sl_checkpoint_file_path(checkpoint, tensor->file_index)),
               (unsigned long long)tensor->offset_bytes,
               (unsigned long long)tensor->info.size_bytes);
    }
}

static void print_store_tensors(const struct sl_store *store)
{
    char text[SL_TENSOR_TEXT_BYTES];

    for (uint32_t i = 0; i < sl_store_model(store)->n_tensors; i++) {
        const struct sl_store_tensor *tensor = sl_store_tensor(store, i);

        printf("%-44s %-24s %s %llu %llu\n", tensor->name, sl_tensor_format(&tensor->info, text),
               base_name(sl_store_file_path(store, tensor->extent.file_index)),
               (unsigned long long)tensor->extent.offset_bytes,
               (unsigned long long)tensor->extent.size_bytes);
    }
}

static void print_tensors(const struct sl_model_files *files)
{
    printf("# name  dtype [shape]  file  offset  bytes\n");
    if (files->store)
        print_store_tensors(files->store);
    else
        print_checkpoint_tensors(files->checkpoint);
}

struct layer_summary {
    uint32_t reads_min, reads_max; /* for one expert */
    uint64_t wanted_bytes; /* of one expert: the same for all but compressed ones, then the most */
    uint64_t read_bytes_max;
};

/* Of one expert, as stored. */
static uint64_t wanted_bytes(const struct sl_expert_store *store, struct sl_expert_key key)
{
    const struct sl_expert_record *record = sl_expert_store_find(store, key);
    uint64_t bytes = 0;

    if (!record)
        return sl_packed_expert_stored_bytes(sl_expert_store_find_packed(store, key));
    for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++)
        bytes += record->codes[m].size_bytes + record->scales[m].size_bytes;
    return bytes;
}

/* Sets used[file_index] for every file that holds a part of the layer's experts. */
static struct layer_summary summarize(const struct sl_expert_store *store, uint32_t layer_index,
                                      bool *used)
{
    struct layer_summary summary = {.reads_min = UINT32_MAX};
    uint32_t n_experts = sl_expert_store_shape(store)->n_routed_experts;

    for (uint32_t e = 0; e < n_experts; e++) {
        const struct sl_expert_key key = {(uint16_t)layer_index, (uint16_t)e};
        struct sl_extent reads[SL_EXPERT_READS_MAX];
        uint32_t count = sl_expert_store_reads(store, key, reads);
        uint64_t read_bytes = 0;

        if (wanted_bytes(store, key) > summary.wanted_bytes)
            summary.wanted_bytes = wanted_bytes(store, key);
        for (uint32_t i = 0; i < count; i++) {
            read_bytes += reads[i].size_bytes;
            used[reads[i].file_index] = true;
        }
        summary.reads_min = count < summary.reads_min ? count : summary.reads_min;
        summary.reads_max = count > summary.reads_max ? count : summary.reads_max;
        if (read_bytes > summary.read_bytes_max)
            summary.read_bytes_max = read_bytes;
    }
    return summary;
}

static void print_layer(const struct sl_expert_store *store, uint32_t layer_index, bool *used)
{
    const struct sl_expert_shape *shape = sl_expert_store_shape(store);
    uint32_t file_count = sl_expert_store_file_count(store);
    struct layer_summary summary;
    char reads[24], layer[24];
    const char *separator = "";

    memset(used, 0, file_count * sizeof(*used));
    summary = summarize(store, layer_index, used);
    if (layer_index < shape->num_hidden_layers)
        snprintf(layer, sizeof(layer), "%u", layer_index);
    else
        snprintf(layer, sizeof(layer), "mtp.%u", layer_index - shape->num_hidden_layers);
    if (summary.reads_min == summary.reads_max)
        snprintf(reads, sizeof(reads), "%u", summary.reads_min);
    else
        snprintf(reads, sizeof(reads), "%u-%u", summary.reads_min, summary.reads_max);
    printf("%-7s %7u %12llu %5s %12llu  ", layer, shape->n_routed_experts,
           (unsigned long long)summary.wanted_bytes, reads,
           (unsigned long long)summary.read_bytes_max);
    for (uint32_t i = 0; i < file_count; i++) {
        if (!used[i])
            continue;
        printf("%s%s", separator, base_name(sl_expert_store_file_path(store, i)));
        separator = ",";
    }
    putchar('\n');
}

static int print_experts(const struct sl_model_files *files, const struct sl_config *config,
                         struct sl_err *err)
{
    const struct sl_expert_shape shape = {
        .num_hidden_layers = config->num_hidden_layers,
        .n_mtp_layers = sl_weights_mtp_known(config, sl_model_files_weights(files, false)),
        .n_routed_experts = config->n_routed_experts,
        .hidden_size = config->hidden_size,
        .moe_intermediate_size = config->moe_intermediate_size,
    };
    struct sl_expert_store *store;
    bool *used;
    int rc;

    rc = sl_model_files_experts(files, &shape, &store, err);
    if (rc < 0)
        return rc;
    used = calloc(sl_expert_store_file_count(store), sizeof(*used));
    if (used) {
        printf("# layer experts bytes/expert reads   bytes read  files\n");
        for (uint32_t i = 0; i < shape.num_hidden_layers + shape.n_mtp_layers; i++)
            print_layer(store, i, used);
    } else {
        rc = sl_err_set(err, -ENOMEM, "expert list: out of memory");
    }
    free(used);
    sl_expert_store_close(store);
    return rc;
}

static void print_on_disk(const struct sl_model_files *files)
{
    char text[SL_SIZE_TEXT_BYTES];
    uint64_t total_bytes = 0;
    uint32_t n_files = files->store ? sl_store_file_count(files->store) : 0;

    for (uint32_t i = 0; i < n_files; i++)
        total_bytes += sl_store_file(files->store, i)->size_bytes;
    if (files->store) {
        uint64_t saved_bytes = sl_store_saved_bytes(files->store);

        printf("  on disk          %s packed: %u tensors, %u experts, %u files\n",
               sl_size_format(total_bytes - saved_bytes, text),
               sl_store_model(files->store)->n_tensors,
               sl_store_expert_count(&sl_store_model(files->store)->shape), n_files);
        if (sl_store_model(files->store)->layout == SL_STORE_LAYOUT_R16_ZSTD)
            printf("  compressed       %s less than without\n", sl_size_format(saved_bytes, text));
        return;
    }
    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(files->checkpoint); i++)
        total_bytes += sl_checkpoint_tensor_at(files->checkpoint, i)->info.size_bytes;
    printf("  on disk          %s in %u tensors, %u files\n", sl_size_format(total_bytes, text),
           sl_checkpoint_tensor_count(files->checkpoint),
           sl_checkpoint_file_count(files->checkpoint));
}

static void print_config(const struct sl_config *c)
{
    uint32_t n_window = 0, n_csa = 0;

    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        n_window += c->compress_ratios[i] == 0;
        n_csa += c->compress_ratios[i] == SL_CSA_RATIO;
    }
    printf("model\n");
    printf("  layers           %u: %u sliding window, %u CSA, %u HCA; %u hash-routed; %u MTP\n",
           c->num_hidden_layers, n_window, n_csa, c->num_hidden_layers - n_window - n_csa,
           c->num_hash_layers, c->num_nextn_predict_layers);
    printf("  hidden size      %u in %u residual streams\n", c->hidden_size, c->hc_mult);
    printf("  attention        %u heads of %u, window %u, top %u entries\n", c->num_attention_heads,
           c->head_dim, c->sliding_window, c->index_topk);
    printf("  experts          %u per layer of width %u, %u for each token\n", c->n_routed_experts,
           c->moe_intermediate_size, c->num_experts_per_tok);
    printf("  vocabulary       %u\n", c->vocab_size);
    printf("  longest context  %u tokens\n", c->max_position_embeddings);
}

static void print_huge_pages(void)
{
    const double share = sl_huge_pages_share();
    char text[SL_SIZE_TEXT_BYTES];

    if (share >= 0)
        printf("  huge pages: %.0f %% of %s tried\n", 100 * share,
               sl_size_format(SL_HUGE_TRIAL_BYTES, text));
}

/* What the model is and what memory it would take with the options given. A model that would not
 * fit is no failure here: the last line says so. */
static int print_summary(struct arguments *arguments, const struct sl_model_files *files,
                         struct sl_config *config, struct sl_err *err)
{
    struct sl_memory_plan plan;
    int verdict, rc;

    if (arguments->engine.context_tokens == 0)
        arguments->engine.context_tokens = config->max_position_embeddings < CONTEXT_TOKENS_DEFAULT
                                               ? config->max_position_embeddings
                                               : CONTEXT_TOKENS_DEFAULT;
    rc = sl_engine_plan(&arguments->engine, &plan, &verdict, err);
    if (rc < 0)
        return rc;
    print_config(config);
    print_on_disk(files);
    sl_memory_plan_print(&plan, stdout);
    printf("compute\n  ");
    sl_placement_print(&arguments->engine.placement, stdout);
    putchar('\n');
    print_huge_pages();
    if (verdict < 0)
        printf("does not fit: %s\n", err->message);
    return 0;
}

int sl_cmd_inspect(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"tensors", 't', NULL, 0, "list all tensors: name, dtype, shape, file, offset, bytes", 0},
        {"experts", 'e', NULL, 0,
         "list the layers' experts: number, bytes of one, reads it takes (as whole blocks, "
         "neighbours merged), bytes these read, files",
         0},
        {0}};
    static const struct argp_child children[] = {
        {&sl_engine_argp, 0, "The memory it would take to run with:", 1}, {0}};
    static const struct argp argp = {.options = options,
                                     .parser = parse_option,
                                     .args_doc = "MODEL",
                                     .doc = "Shows what MODEL, a checkpoint folder or a store, "
                                            "holds and what memory it needs, without "
                                            "reading its data.",
                                     .children = children};
    struct arguments arguments = {0};
    struct sl_model_files files = {0};
    struct sl_config config;
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &arguments);
    rc = sl_config_read(&config, arguments.engine.model, &err);
    if (rc == 0)
        rc = sl_model_files_open(&files, arguments.engine.model, &err);
    if (rc == 0 && arguments.tensors)
        print_tensors(&files);
    if (rc == 0 && arguments.experts)
        rc = print_experts(&files, &config, &err);
    if (rc == 0 && !arguments.experts && !arguments.tensors)
        rc = print_summary(&arguments, &files, &config, &err);
    sl_model_files_close(&files);
    return sl_command_status(rc, &err);
}
