/* The parts of the worker's status that are lists: drives, and who waits or is served. */
#include <string.h>

#include "core/base/clock.h"
#include "daemon/worker/worker_internal.h"

void sl_worker_name_drives(struct sl_worker *w)
{
    const uint32_t n_all = sl_engine_drive_count(w->engine);
    const uint32_t n = n_all < SL_WORKER_DRIVES_MAX ? n_all : SL_WORKER_DRIVES_MAX;

    for (uint32_t i = 0; i < n; i++) {
        struct sl_drive drive = {.name = "?"};

        sl_drive_of(&drive, sl_engine_drive(w->engine, i).path, NULL);
        pthread_mutex_lock(&w->lock); /* others look at the status already */
        strcpy(w->status.drives[i].name, drive.name);
        w->status.n_drives = i + 1;
        pthread_mutex_unlock(&w->lock);
    }
}

static struct sl_worker_entry entry_of(const struct sl_ticket *ticket, uint64_t now_ns)
{
    const uint32_t n_prompt_tokens = atomic_load(&ticket->n_prompt_tokens);
    const uint32_t n_done_tokens =
        atomic_load(&ticket->n_done_tokens) + atomic_load(&ticket->n_part_tokens);

    return (struct sl_worker_entry){
        .class = ticket->class,
        .is_waiting = !atomic_load(&ticket->has_begun),
        .n_texts = ticket->n_texts,
        .n_prompt_tokens = n_prompt_tokens,
        .n_done_tokens = n_done_tokens < n_prompt_tokens ? n_done_tokens : n_prompt_tokens,
        .n_new_tokens = ticket->usage.n_new_tokens,
        .age_ns = now_ns - ticket->submitted_ns,
    };
}

/* In the order in which they came. */
static void add_entries(struct sl_worker *w, enum sl_job_class class, uint64_t now_ns)
{
    struct sl_worker_status *status = &w->status;

    for (struct sl_link *at = w->live.next; at != &w->live; at = at->next) {
        const struct sl_ticket *ticket = sl_list_item(at, struct sl_ticket, live);

        if (ticket->class != class)
            continue;
        if (status->n_entries < SL_WORKER_ENTRIES_MAX)
            status->entries[status->n_entries++] = entry_of(ticket, now_ns);
        status->n_entries_all++;
    }
}

/* Under the lock. Those who wait for their answers come before what is of batches, of which there
 * is often more than the list has room for. */
void sl_worker_publish_lists(struct sl_worker *w)
{
    struct sl_worker_status *status = &w->status;
    const uint64_t now_ns = sl_clock_ns();

    for (uint32_t i = 0; i < status->n_drives; i++)
        status->drives[i].read_bytes = sl_engine_drive(w->engine, i).read_bytes;
    status->n_entries = 0;
    status->n_entries_all = 0;
    for (int class = 0; class < SL_JOB_CLASSES; class ++)
        add_entries(w, (enum sl_job_class) class, now_ns);
}
