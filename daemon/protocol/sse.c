#include "daemon/protocol/sse.h"

#include <inttypes.h>

void sl_sse_write(struct sl_bytes *out, const char *name, json_t *object)
{
    if (name)
        sl_bytes_add_format(out, "event: %s\n", name);
    sl_bytes_add_text(out, "data: ");
    sl_bytes_add_json(out, object);
    sl_bytes_add_text(out, "\n\n");
    json_decref(object);
}

void sl_sse_write_progress(struct sl_bytes *out, const struct sl_reply_progress *progress)
{
    if (progress->is_queued) {
        sl_bytes_add_text(out, ": queued\n\n");
        return;
    }
    sl_bytes_add_format(out, ": prefill %" PRIu32 "/%" PRIu32 " tokens", progress->n_done_tokens,
                        progress->n_prompt_tokens);
    if (progress->left_s >= 0)
        sl_bytes_add_format(out, ", %.0f s left", progress->left_s);
    sl_bytes_add_text(out, "\n\n");
}
