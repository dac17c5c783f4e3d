/* The model's own walk over its tensors, done on a source that takes note. */
#include "core/model/dense_list.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/weights.h"

struct noting_source {
    struct sl_weight_source source; /* first */
    struct sl_weight_source *inner;
    struct sl_dense_list list;
    bool no_memory;
};

static void append(struct noting_source *in, const char *name)
{
    struct sl_dense_list *list = &in->list;

    if ((list->n_names & (list->n_names + 1)) == 0) { /* full: room for 0, 1, 3, 7, ... */
        char **names = realloc(list->names, (2 * (size_t)list->n_names + 1) * sizeof(*names));

        in->no_memory |= !names;
        if (names)
            list->names = names;
    }
    if (in->no_memory)
        return;
    list->names[list->n_names] = strdup(name);
    in->no_memory |= !list->names[list->n_names];
    list->n_names += !in->no_memory;
}

/* A linear's weight is looked up before its scales, and read after them. */
static void order_last(struct sl_dense_list *list)
{
    char **last = list->names + list->n_names - 1;
    const char *dot = strrchr(last[0], '.');
    char *scale = last[0];

    if (list->n_names < 2 || !dot || strcmp(dot, ".scale") != 0 ||
        strncmp(last[-1], scale, (size_t)(dot - scale) + 1) != 0)
        return;
    last[0] = last[-1];
    last[-1] = scale;
}

static int noting_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    struct noting_source *in = (struct noting_source *)source;
    int rc = in->inner->ops->find(in->inner, name, ret_info);

    if (rc < 0 || in->no_memory)
        return rc;
    append(in, name);
    if (!in->no_memory)
        order_last(&in->list);
    return rc;
}

static const char *noting_where(struct sl_weight_source *source, const char *name)
{
    struct sl_weight_source *inner = ((struct noting_source *)source)->inner;

    return inner->ops->where(inner, name);
}

int sl_dense_list_make(struct sl_dense_list *ret_list, const struct sl_config *config,
                       struct sl_weight_source *source, const struct sl_draft *draft,
                       struct sl_err *err)
{
    /* Measuring reads nothing. */
    static const struct sl_weight_source_ops ops = {.find = noting_find, .where = noting_where};
    struct noting_source in = {.source = {&ops}, .inner = source};
    struct sl_weight_sizes sizes;
    int rc = sl_weights_measure(config, &in.source, draft, &sizes, err);

    if (rc == 0 && in.no_memory)
        rc = sl_err_set(err, -ENOMEM, "list of tensors: out of memory");
    if (rc < 0)
        sl_dense_list_fini(&in.list);
    else
        *ret_list = in.list;
    return rc;
}

void sl_dense_list_fini(struct sl_dense_list *list)
{
    for (uint32_t i = 0; i < list->n_names; i++)
        free(list->names[i]);
    free(list->names);
    *list = (struct sl_dense_list){0};
}
