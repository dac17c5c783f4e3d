#include "tools/cmd/generate_figures.h"

#include <stdio.h>

#include "core/base/size.h"
#include "tools/cli/engine_options.h"
#include "tools/cmd/generate_output.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/version.h"

static double per_second(uint64_t count, uint64_t ns)
{
    return ns ? (double)count * 1e9 / (double)ns : 0;
}

static double hit_rate(const struct sl_expert_cache_counters *c)
{
    return c->n_requests ? (double)(c->n_hits + c->n_prefetch_hits) / (double)c->n_requests : 0;
}

/* Prints why the text ended, if there is only one. */
static void print_finish(const struct sl_generate_text *g)
{
    if (sl_interrupted()) {
        fprintf(stderr, ", interrupted");
        return;
    }
    if (g->totals.n_texts != 1)
        return;
    switch (sl_generation_finish(g->generation)) {
    case SL_FINISH_END_OF_TEXT:
        fprintf(stderr, ", to the end of text");
        break;
    case SL_FINISH_STOP_STRING:
        fprintf(stderr, ", stopped at --stop \"%s\"", sl_generation_stop_string(g->generation));
        break;
    case SL_FINISH_TOKENS_MAX:
        fprintf(stderr, ", stopped at -n %u", g->options.rules.n_new_max);
        break;
    case SL_FINISH_CONTEXT:
        fprintf(stderr, ", stopped at --context %u", g->options.rules.context_tokens);
        break;
    case SL_FINISH_INTERRUPTED:
    case SL_FINISH_NONE: /* an error says why */
        break;
    }
}

static void print_images(const struct sl_generate_text *g)
{
    const struct sl_images_counters c = sl_images_counters(sl_engine_images(g->engine));
    char loaded[SL_SIZE_TEXT_BYTES], saved[SL_SIZE_TEXT_BYTES];

    fprintf(stderr, "images   %llu token%s of prompts found, %s loaded in %.2f s; %llu kept, %s\n",
            (unsigned long long)g->totals.n_resumed_tokens, sl_plural(g->totals.n_resumed_tokens),
            sl_size_format(c.loaded_bytes, loaded), (double)g->totals.resume_ns / 1e9,
            (unsigned long long)c.n_saved, sl_size_format(c.saved_bytes, saved));
}

static void print_text_figures(const struct sl_generate_text *g)
{
    const struct sl_generate_totals *t = &g->totals;

    fprintf(stderr, "\nprompt   %llu token%s in %.2f s (%.2f tokens/s)\n",
            (unsigned long long)t->n_prompt_tokens, sl_plural(t->n_prompt_tokens),
            (double)t->prefill_ns / 1e9, per_second(t->n_prompt_tokens, t->prefill_ns));
    if (sl_engine_images(g->engine))
        print_images(g);
    fprintf(stderr, "text     %llu token%s", (unsigned long long)t->n_new_tokens,
            sl_plural(t->n_new_tokens));
    if (t->n_texts != 1)
        fprintf(stderr, " in %u texts", t->n_texts);
    fprintf(stderr, ", %llu of them in %.2f s (%.2f tokens/s)", (unsigned long long)t->n_decoded,
            (double)t->decode_ns / 1e9, per_second(t->n_decoded, t->decode_ns));
    print_finish(g);
    fputc('\n', stderr);
}

/* Drafts, if steps checked any. */
static void print_drafts(const struct sl_generate_totals *t)
{
    if (t->n_verifications == 0)
        return;
    fprintf(stderr, "drafts   %llu checked in %llu steps, %.1f %% right: %.2f tokens a step\n",
            (unsigned long long)t->n_drafts, (unsigned long long)t->n_verifications,
            100 * (double)t->n_drafts_right / (double)t->n_drafts,
            1 + (double)t->n_drafts_right / (double)t->n_verifications);
}

/* The layers that streamed, if any did. */
static void print_dense(const struct sl_engine *engine)
{
    const struct sl_engine_dense dense = sl_engine_dense(engine);
    char read[SL_SIZE_TEXT_BYTES];

    if (dense.reads.read_bytes == 0)
        return;
    fprintf(stderr,
            "dense    %llu times a layer that streams, %.1f %% read ahead in time; %s read, %.2f s "
            "waited for\n",
            (unsigned long long)dense.layers.n_acquired,
            dense.layers.n_acquired
                ? 100 * (double)dense.layers.n_ready / (double)dense.layers.n_acquired
                : 0,
            sl_size_format(dense.reads.read_bytes, read), (double)dense.reads.wait_ns / 1e9);
}

void sl_generate_print_figures(const struct sl_generate_text *g,
                               const struct sl_engine_options *options)
{
    struct sl_expert_cache_counters c = sl_engine_counters(g->engine);
    char wanted[SL_SIZE_TEXT_BYTES], read[SL_SIZE_TEXT_BYTES];

    print_text_figures(g);
    print_drafts(&g->totals);
    fprintf(stderr,
            "experts  %llu asked for; %.1f %% found in the cache, %llu of them kept and %llu "
            "prefetched\n",
            (unsigned long long)c.n_requests, 100 * hit_rate(&c), (unsigned long long)c.n_hits,
            (unsigned long long)c.n_prefetch_hits);
    if (c.n_sweep_requests > 0)
        fprintf(stderr,
                "sweeps   %llu of them asked for by steps of many tokens, %.1f %% were kept; %llu "
                "of each layer stay for the next such step\n",
                (unsigned long long)c.n_sweep_requests,
                100 * (double)c.n_sweep_hits / (double)c.n_sweep_requests,
                (unsigned long long)c.n_pinned);
    if (c.n_preloads > 0)
        fprintf(stderr, "hot      %llu expert%s of an earlier run loaded before the prompt\n",
                (unsigned long long)c.n_preloads, sl_plural(c.n_preloads));
    if (c.n_predicted > 0)
        fprintf(stderr,
                "predicted %llu experts, %.1f %% right; %llu loaded for it, %llu in time and %llu "
                "late, "
                "%s wasted\n",
                (unsigned long long)c.n_predicted,
                100 * (double)c.n_predicted_right / (double)c.n_predicted,
                (unsigned long long)c.n_predicted_loads, (unsigned long long)c.n_predicted_hits,
                (unsigned long long)c.n_predicted_late,
                sl_size_format(c.predicted_wasted_bytes, wanted));
    fprintf(stderr, "disk     %s wanted, %s read, %.2f s waited for\n",
            sl_size_format(c.wanted_bytes, wanted), sl_size_format(c.read_bytes, read),
            (double)c.wait_ns / 1e9);
    print_dense(g->engine);
    if (c.n_stalls > 0)
        fprintf(stderr, "stalls   %llu read%s took longer than --io-stall, the longest %.0f s\n",
                (unsigned long long)c.n_stalls, sl_plural(c.n_stalls), (double)c.longest_ns / 1e9);
    sl_print_resources(g->engine, &options->affinity, stderr);
}

/* ---- as JSON -----------------------------------------------------------------------------------
 */

static void set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

/* Makes the object of all options in force, given or default. */
static json_t *options_object(const struct sl_generate_text *g,
                              const struct sl_engine_options *options)
{
    const struct sl_sampler *sampler = &g->options.sampler;
    json_t *object = json_object(), *stops = json_array();

    for (uint32_t i = 0; i < g->options.rules.stops.n_strings; i++)
        json_array_append_new(stops, json_string(g->options.rules.stops.strings[i]));
    set(object, "temperature", json_real(sampler->temperature));
    set(object, "top_k", json_integer(sampler->top_k));
    set(object, "top_p", json_real(sampler->top_p));
    set(object, "min_p", json_real(sampler->min_p));
    set(object, "stop", stops);
    set(object, "new_tokens_max",
        g->options.rules.n_new_max ? json_integer(g->options.rules.n_new_max) : json_null());
    set(object, "context_tokens", json_integer(g->options.rules.context_tokens));
    set(object, "segment_tokens",
        json_integer(sl_engine_step_tokens_max(g->engine, SL_STEP_LARGE)));
    set(object, "cache_experts", json_integer(sl_engine_slot_count(g->engine)));
    set(object, "threads", json_integer(options->affinity.n_threads));
    set(object, "isa", json_string(sl_engine_isa(g->engine)));
    return object;
}

static void set_text_figures(json_t *object, const struct sl_generate_text *g)
{
    const struct sl_generate_totals *t = &g->totals;

    set(object, "interrupted", json_boolean(sl_interrupted()));
    set(object, "texts", json_integer(t->n_texts));
    if (t->n_texts == 1)
        set(object, "stop", json_string(sl_finish_name(sl_generation_finish(g->generation))));
    set(object, "prompt_tokens", json_integer((json_int_t)t->n_prompt_tokens));
    set(object, "resumed_tokens", json_integer((json_int_t)t->n_resumed_tokens));
    set(object, "new_tokens", json_integer((json_int_t)t->n_new_tokens));
    set(object, "prefill_seconds", json_real((double)t->prefill_ns / 1e9));
    set(object, "prefill_tokens_per_second",
        json_real(per_second(t->n_prompt_tokens, t->prefill_ns)));
    set(object, "decode_seconds", json_real((double)t->decode_ns / 1e9));
    set(object, "decode_tokens_per_second", json_real(per_second(t->n_decoded, t->decode_ns)));
    set(object, "resume_seconds", json_real((double)t->resume_ns / 1e9));
    set(object, "verifications", json_integer((json_int_t)t->n_verifications));
    set(object, "drafts", json_integer((json_int_t)t->n_drafts));
    set(object, "drafts_right", json_integer((json_int_t)t->n_drafts_right));
    set(object, "decode_expert_requests", json_integer((json_int_t)t->n_decode_requests));
    set(object, "decode_read_bytes", json_integer((json_int_t)t->decode_read_bytes));
}

/* JSON readers know whole numbers of 63 bits, some only of 53. A larger seed is written as a
 * string, so that no digit is lost. */
static json_t *seed_value(uint64_t seed)
{
    return seed <= INT64_MAX ? json_integer((json_int_t)seed)
                             : json_sprintf("%llu", (unsigned long long)seed);
}

void sl_generate_write_stats(const struct sl_generate_text *g,
                             const struct sl_engine_options *options, json_t *arguments,
                             struct sl_output_file *out)
{
    const struct sl_engine_dense dense = sl_engine_dense(g->engine);
    struct sl_expert_cache_counters counters;
    json_t *object = json_object();

    set(object, "version", json_string(sl_version));
    set(object, "model", json_string(options->model));
    json_object_set(object, "arguments", arguments);
    set(object, "seed", seed_value(g->options.sampler.seed));
    set(object, "options", options_object(g, options));
    set_text_figures(object, g);
    counters = sl_engine_counters(g->engine);
    sl_metrics_set_json(object, &sl_expert_cache_metrics, &counters);
    set(object, "dense_read_bytes", json_integer((json_int_t)dense.reads.read_bytes));
    set(object, "dense_wait_seconds", json_real((double)dense.reads.wait_ns / 1e9));
    json_dumpf(object, out->stream, JSON_INDENT(2));
    fputc('\n', out->stream);
    json_decref(object);
}
