/* sluice trace summary: shows how a text's requests are spread over experts and over time. */
#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/trace.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "tools/cli/command_line.h"
#include "tools/cli/json_lines.h"
#include "tools/trace/trace_commands.h"

/* Classes of the distance, in tokens, to the last request for the same expert: up to 1, 2, 4, ...
 * 512, more, never. */
#define DISTANCES 12u

struct command {
    const char *path;
    bool json;
    struct sl_trace trace;
};

struct layer_figures {
    uint64_t n_requests;
    double busiest, busiest_quarter, idlest; /* shares of the requests */
    double same;     /* share of the requests that the token before had made, too */
    uint32_t n_used; /* experts */
    uint64_t distances[DISTANCES];
};

enum { OPTION_JSON = 256 };

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_JSON:
        command->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (command->path)
            argp_error(state, "one TRACE, not \"%s\" as well", value);
        command->path = value;
        return 0;
    case ARGP_KEY_END:
        if (!command->path)
            argp_error(state, "TRACE is missing");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int compare_descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? 1 : x > y ? -1 : 0;
}

static void spread(uint64_t *counts, uint32_t n, struct layer_figures *figures)
{
    uint64_t quarter = 0;

    qsort(counts, n, sizeof(*counts), compare_descending);
    for (uint32_t e = 0; e < n; e++) {
        quarter += e < (n + 3) / 4 ? counts[e] : 0;
        figures->n_used += counts[e] > 0;
    }
    figures->busiest = (double)counts[0] / (double)figures->n_requests;
    figures->busiest_quarter = (double)quarter / (double)figures->n_requests;
    figures->idlest = (double)counts[n - 1] / (double)figures->n_requests;
}

/* `counts` and `last_token` are scratch of (n_routed_experts) each. */
static void measure_layer(const struct sl_trace *trace, uint32_t layer, uint64_t *counts,
                          uint64_t *last_token, struct layer_figures *figures)
{
    const uint32_t k = trace->shape.n_per_token, experts = trace->shape.n_routed_experts;

    *figures = (struct layer_figures){.n_requests = trace->n_tokens * k};
    memset(counts, 0, experts * sizeof(*counts));
    memset(last_token, 0, experts * sizeof(*last_token));
    for (uint64_t token = 0; token < trace->n_tokens; token++) {
        const uint16_t *asked =
            trace->experts + (token * trace->shape.num_hidden_layers + layer) * k;

        for (uint32_t s = 0; s < k; s++) {
            uint64_t distance = token + 1 - last_token[asked[s]];
            uint32_t at = 0;

            while (at < DISTANCES - 2 && distance > UINT64_C(1) << at)
                at++;
            figures->distances[counts[asked[s]] ? at : DISTANCES - 1]++;
            counts[asked[s]]++;
            last_token[asked[s]] = token + 1;
        }
    }
    figures->same = (double)figures->distances[0] / (double)figures->n_requests;
    spread(counts, experts, figures);
}

static void print_distances(const uint64_t distances[DISTANCES], double n_requests)
{
    uint64_t sum = 0;

    printf("\ntokens since the same expert was asked for\n");
    for (uint32_t i = 0; i < DISTANCES; i++) {
        sum += distances[i];
        if (i < DISTANCES - 2)
            printf("  up to %-6u", 1u << i);
        else
            printf("  %-12s", i < DISTANCES - 1 ? "more" : "never before");
        printf(" %6.2f %%, together %6.2f %%\n", 100 * (double)distances[i] / n_requests,
               100 * (double)sum / n_requests);
    }
}

static void print_json(uint32_t layer, const struct layer_figures *f)
{
    json_t *distances = json_array();
    json_t *object;

    for (uint32_t i = 0; i < DISTANCES; i++)
        json_array_append_new(distances, json_integer((json_int_t)f->distances[i]));
    object = json_pack("{s:i, s:I, s:i, s:f, s:f, s:f, s:f, s:o}", "layer", (int)layer, "requests",
                       (json_int_t)f->n_requests, "experts_used", (int)f->n_used, "busiest",
                       f->busiest, "busiest_quarter", f->busiest_quarter, "idlest", f->idlest,
                       "same_as_before", f->same, "distances", distances);
    sl_json_line_print(object);
}

static int summarise(struct command *command, struct sl_err *err)
{
    const struct sl_trace_shape *shape = &command->trace.shape;
    uint64_t distances[DISTANCES] = {0}, *counts, *last_token;
    struct layer_figures figures;
    int rc = sl_trace_read(&command->trace, command->path, err);

    if (rc < 0)
        return rc;
    counts = calloc(shape->n_routed_experts, sizeof(*counts));
    last_token = calloc(shape->n_routed_experts, sizeof(*last_token));
    if (!counts || !last_token)
        rc = sl_err_set(err, -ENOMEM, "out of memory");
    if (rc == 0 && !command->json) {
        printf(
            "%llu token%s in %llu step%s; %u layers, the first %u hash-routed, of %u experts, %u "
            "for each token\n\n",
            (unsigned long long)command->trace.n_tokens, sl_plural(command->trace.n_tokens),
            (unsigned long long)command->trace.n_steps, sl_plural(command->trace.n_steps),
            shape->num_hidden_layers, shape->num_hash_layers, shape->n_routed_experts,
            shape->n_per_token);
        printf("layer   used  busiest  busiest quarter  idlest  same as for the token before\n");
    }
    for (uint32_t layer = 0; layer < shape->num_hidden_layers && rc == 0; layer++) {
        measure_layer(&command->trace, layer, counts, last_token, &figures);
        for (uint32_t i = 0; i < DISTANCES; i++)
            distances[i] += figures.distances[i];
        if (command->json)
            print_json(layer, &figures);
        else
            printf("%5u %6u %6.2f %% %14.1f %% %5.2f %% %27.1f %%\n", layer, figures.n_used,
                   100 * figures.busiest, 100 * figures.busiest_quarter, 100 * figures.idlest,
                   100 * figures.same);
    }
    if (rc == 0 && !command->json)
        print_distances(distances, (double)command->trace.n_tokens * shape->n_per_token *
                                       shape->num_hidden_layers);
    free(counts);
    free(last_token);
    return rc;
}

int sl_trace_summary(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line, for each layer", 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "TRACE",
        .doc = "Shows how unevenly each layer's experts are asked for, and how soon again."};
    struct command command = {.path = NULL};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = summarise(&command, &err);
    sl_trace_fini(&command.trace);
    return sl_command_status(rc, &err);
}
