#include "tools/plan/cost.h"

#include <math.h>
#include <string.h>

#include "cache/slot_table.h"
#include "core/model/kv_cache.h"
#include "storage/experts/expert_map.h"
#include "core/base/size.h"

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* ---- the model's numbers -----------------------------------------------------------------------
 */

uint64_t sl_cost_expert_bytes(const struct sl_config *config)
{
    const struct sl_expert_shape shape = sl_expert_shape_of(config, 0);

    return sl_packed_expert_bytes(&shape);
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), n = strlen(end);

    return length >= n && strcmp(name + length - n, end) == 0;
}

/* Matrices are linears, except for three tables of which a token reads one row. */
void sl_cost_add_dense(struct sl_dense_cost *cost, const char *name,
                       const struct sl_tensor_info *info)
{
    const double n = (double)info->shape[0] * (double)info->shape[1];

    if (info->n_dims != 2 || strcmp(name, "embed.weight") == 0 || ends_with(name, ".ape") ||
        ends_with(name, ".tid2eid"))
        return;
    if (strcmp(name, "head.weight") == 0) {
        cost->head_bytes += (double)info->size_bytes;
        cost->head_multiplied += n;
        return;
    }
    cost->read_bytes += (double)info->size_bytes;
    if (info->dtype == SL_DTYPE_F32)
        cost->multiplied.f32 += n;
    else if (info->dtype == SL_DTYPE_BF16 || info->dtype == SL_DTYPE_F8_E4M3)
        cost->multiplied.bf16 += n;
}

struct attention_cost {
    double read_bytes, bf16, int8;
};

/* Returns attention's cost in all layers for a token that attends to n_past tokens, itself
 * included. */
static struct attention_cost attend(const struct sl_config *c, double n_past)
{
    const double entry_bytes = sl_kv_cache_entry_bytes(c, SL_NUMERICS_NATIVE);
    const double key_cols = sl_index_key_cols(c);
    const double key_bytes = key_cols * 17 / 32; /* FP4 and a scale for 32 */
    const double window = n_past < c->sliding_window ? n_past : c->sliding_window;
    struct attention_cost cost = {0};

    for (uint32_t i = 0; i < c->num_hidden_layers; i++) {
        const uint32_t ratio = c->compress_ratios[i];
        double entries = ratio ? floor(n_past / ratio) : 0;

        if (ratio == SL_CSA_RATIO) {
            cost.read_bytes += entries * key_bytes;
            cost.int8 += entries * key_cols * c->index_n_heads;
            entries = entries < c->index_topk ? entries : c->index_topk;
        }
        entries += window;
        cost.read_bytes += entries * entry_bytes;
        cost.bf16 += 2 * entries * c->num_attention_heads * c->head_dim; /* scores, values */
    }
    return cost;
}

/* Points (share of all experts that a cache holds, share of the requests that it finds). */
static const double flash_curve[][2] = {{0, 0},       {0.055, 0.40}, {0.11, 0.59},
                                        {0.22, 0.74}, {0.44, 0.87},  {1, 1}};
static const double even_curve[][2] = {{0, 0}, {1, 1}};

double sl_cost_flash_hit_rate(double share)
{
    const double(*points)[2] = flash_curve;
    size_t i = 1;

    while (i + 1 < SL_ARRAY_LEN(flash_curve) && share > points[i][0])
        i++;
    return points[i - 1][1] + (share - points[i - 1][0]) * (points[i][1] - points[i - 1][1]) /
                                  (points[i][0] - points[i - 1][0]);
}

/* Returns how many experts n_tokens ask for of this share of a layer, those that are chosen most.
 * On each straight piece of the curve all are chosen alike, so often as it is steep. */
static double demanded_of(const struct sl_config *config, double n_tokens, double share, bool even)
{
    const double(*points)[2] = even ? even_curve : flash_curve;
    const size_t n_points = even ? SL_ARRAY_LEN(even_curve) : SL_ARRAY_LEN(flash_curve);
    const double chance = (double)config->num_experts_per_tok / config->n_routed_experts;
    double sum = 0;

    for (size_t i = 1; i < n_points && points[i - 1][0] < share; i++) {
        const double width = points[i][0] - points[i - 1][0];
        const double p = chance * (points[i][1] - points[i - 1][1]) / width;
        const double end = share < points[i][0] ? share : points[i][0];

        sum += (end - points[i - 1][0]) * (p < 1 ? 1 - pow(1 - p, n_tokens) : 1);
    }
    return sum * config->n_routed_experts;
}

double sl_cost_demanded(const struct sl_config *config, double n_tokens, bool even)
{
    return demanded_of(config, n_tokens, 1, even);
}

double sl_cost_found(const struct sl_config *config, uint64_t n_slots, double n_tokens, bool even)
{
    const uint32_t n_layers = config->num_hidden_layers, n_experts = config->n_routed_experts;
    const double demanded = sl_cost_demanded(config, n_tokens, even);
    double share = (double)n_slots / ((double)n_layers * n_experts);

    if (demanded >= sl_sweep_experts_min(n_experts, config->num_experts_per_tok))
        share = (double)sl_sweep_pinned((uint32_t)n_slots, n_layers, n_experts) / n_experts;
    return demanded_of(config, n_tokens, share, even) / demanded;
}

/* ---- the step ----------------------------------------------------------------------------------
 */

static double multiply_ns(const struct sl_multiplications *n, const struct sl_multiplications *rate)
{
    return n->int8 / rate->int8 + n->bf16 / rate->bf16 + n->f32 / rate->f32;
}

/* Adds what some sequences take beside the weights and experts. Only the last token of each goes
 * through the head. */
static void add_part(const struct sl_config *config, const struct sl_dense_cost *dense,
                     const struct sl_cost_part *part, struct sl_multiplications *multiplied,
                     double *read_bytes)
{
    const double n_tokens = (double)part->n_sequences * part->n_tokens;
    /* A token attends to the tokens before it, which include half of the step on average. */
    const struct attention_cost middle =
        attend(config, part->past_tokens + (part->n_tokens + 1) / 2.0);
    const struct attention_cost last = attend(config, (double)part->past_tokens + part->n_tokens);

    multiplied->int8 += n_tokens * middle.int8;
    multiplied->bf16 += n_tokens * (dense->multiplied.bf16 + middle.bf16) +
                        part->n_sequences * dense->head_multiplied;
    multiplied->f32 += n_tokens * dense->multiplied.f32;
    *read_bytes += part->n_sequences * last.read_bytes;
}

/* Returns the bytes of everything but routed experts. */
static double dense_work(const struct sl_config *config, const struct sl_dense_cost *dense,
                         const struct sl_cost_case *step, struct sl_multiplications *ret_multiplied)
{
    const struct sl_cost_part first = {step->n_sequences, step->n_tokens, step->past_tokens};
    double read_bytes = dense->read_bytes + dense->head_bytes;

    *ret_multiplied = (struct sl_multiplications){0};
    add_part(config, dense, &first, ret_multiplied, &read_bytes);
    for (uint32_t i = 0; i < step->n_others; i++)
        add_part(config, dense, &step->others[i], ret_multiplied, &read_bytes);
    return read_bytes;
}

static double count_tokens(const struct sl_cost_case *step)
{
    double n = (double)step->n_sequences * step->n_tokens;

    for (uint32_t i = 0; i < step->n_others; i++)
        n += (double)step->others[i].n_sequences * step->others[i].n_tokens;
    return n;
}

/* Returns the share of a layer's missing experts that is read before the layer is come to. */
static double read_ahead(const struct sl_config *config, double n_demanded)
{
    const double n = sl_sweep_read_ahead(config->n_routed_experts, (uint32_t)(n_demanded + 0.5));

    return n < n_demanded ? n / n_demanded : 1;
}

static struct sl_multiplications multiply_experts(const struct sl_config *config, double n_tokens)
{
    const double n = n_tokens * config->num_hidden_layers * config->num_experts_per_tok * 3.0 *
                     config->hidden_size * config->moe_intermediate_size;

    return config->expert_dtype == SL_EXPERT_FP8 ? (struct sl_multiplications){.bf16 = n}
                                                 : (struct sl_multiplications){.int8 = n};
}

void sl_cost_predict(const struct sl_config *config, const struct sl_dense_cost *dense,
                     const struct sl_cost_case *step, const struct sl_machine_speeds *speeds,
                     struct sl_cost *ret_cost)
{
    const double n_tokens = count_tokens(step);
    const double n_demanded = sl_cost_demanded(config, n_tokens, step->even);
    const double n_experts = config->num_hidden_layers * n_demanded;
    const double expert_bytes = n_experts * (double)sl_cost_expert_bytes(config);
    const double missing_bytes = expert_bytes * (1 - step->hit_rate);
    struct sl_multiplications apart;
    const double dense_bytes = dense_work(config, dense, step, &apart);
    const struct sl_multiplications routed = multiply_experts(config, n_tokens);
    const double dense_multiply_ns = multiply_ns(&apart, &speeds->multiply);
    const double expert_multiply_ns = multiply_ns(&routed, &speeds->multiply);
    const double dense_ns = larger(dense_bytes / speeds->memory, dense_multiply_ns);
    const double expert_ns = larger(expert_bytes / speeds->memory, expert_multiply_ns);
    const double missing_ns = missing_bytes / speeds->drive;
    const double ahead_ns = missing_ns * read_ahead(config, n_demanded);
    struct sl_cost cost = {
        .n_experts = n_experts,
        .drive_bytes = missing_bytes + (double)step->streamed_bytes,
        .memory_bytes = dense_bytes + expert_bytes,
        .multiplied = {apart.int8 + routed.int8, apart.bf16 + routed.bf16, apart.f32},
        .multiply_ns = dense_multiply_ns + expert_multiply_ns,
        .compute_ns = dense_ns + expert_ns,
    };

    cost.drive_ns = cost.drive_bytes / speeds->drive;
    cost.memory_ns = cost.memory_bytes / speeds->memory;
    cost.step_ns =
        dense_ns + larger(missing_ns - (ahead_ns < dense_ns ? ahead_ns : dense_ns), expert_ns);
    cost.step_ns = larger(cost.step_ns, cost.drive_ns);
    cost.limit = cost.memory_ns > cost.multiply_ns ? SL_COST_MEMORY : SL_COST_MULTIPLY;
    if (cost.drive_ns > larger(cost.memory_ns, cost.multiply_ns))
        cost.limit = SL_COST_DRIVE;
    *ret_cost = cost;
}
