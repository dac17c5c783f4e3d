/* The journal's entries, numbers in hexadecimal:
 *
 *     model                        identity of the weights, and numerics
 *     batch/NUMBER                 the batch's record, JSON
 *     about/NUMBER                 what the caller keeps with it
 *     cancel/NUMBER                somebody has asked to cancel it
 *     item/NUMBER/ITEM             the item has ended: "f" failed, "d 300" done with 300 tokens in
 *                                  each text, "c 300" where its limit cut them; until its batch has
 *     made/NUMBER/ITEM/TEXT/GROUP  tokens of an answer that is under way (made_tokens.h)
 *
 * A commit of the runner's first syncs the lines of results, and then enters in one transaction
 * that they are there and whose they are. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"
#include "daemon/batch/batch_runner_internal.h"

#define KEY_BYTES 64
#define ITEM_BYTES_MAX 12u

static void batch_key(char key[KEY_BYTES], const char *kind, uint32_t number)
{
    snprintf(key, KEY_BYTES, "%s/%08x", kind, number);
}

static void item_key(char key[KEY_BYTES], uint32_t number, uint32_t item_index)
{
    snprintf(key, KEY_BYTES, "item/%08x/%08x", number, item_index);
}

static void made_key(char key[KEY_BYTES], uint32_t number, uint32_t item_index, uint32_t text_index,
                     uint32_t group)
{
    snprintf(key, KEY_BYTES, "made/%08x/%08x/%02x/%08x", number, item_index, text_index, group);
}

/* ---- what happened to items --------------------------------------------------------------------
 */

void sl_batch_forget_made(struct sl_batch_runner *r, const struct sl_batch *batch,
                          uint32_t item_index, const struct sl_text_made *texts, uint32_t n_texts)
{
    char key[KEY_BYTES];

    for (uint32_t i = 0; i < n_texts; i++)
        for (uint32_t group = 0; group < texts[i].n_groups; group++) {
            made_key(key, batch->record.number, item_index, i, group);
            sl_journal_remove(&r->lasting, key);
        }
}

void sl_batch_note_item(struct sl_batch_runner *r, const struct sl_batch *batch,
                        uint32_t item_index, const struct sl_answer_length *length)
{
    char key[KEY_BYTES], value[ITEM_BYTES_MAX + 1] = "f";

    if (length)
        snprintf(value, sizeof(value), "%c %u", length->is_cut ? 'c' : 'd', length->n_tokens);
    item_key(key, batch->record.number, item_index);
    sl_journal_put(&r->lasting, key, value, strlen(value));
    r->has_ended_items = true;
}

/* The record alone tells of a batch that has ended. */
static void remove_items(struct sl_journal_changes *changes, const struct sl_batch *batch)
{
    char key[KEY_BYTES];

    for (uint32_t i = 0; i < batch->record.n_items; i++) {
        item_key(key, batch->record.number, i);
        sl_journal_remove(changes, key);
    }
    batch_key(key, "cancel", batch->record.number);
    sl_journal_remove(changes, key);
}

/* ---- commits -----------------------------------------------------------------------------------
 */

static struct sl_batch *batch_at(const struct sl_link *link)
{
    return sl_list_item(link, struct sl_batch, link);
}

static struct sl_link *first_batch(struct sl_batch_runner *r)
{
    struct sl_link *first;

    pthread_mutex_lock(&r->lock); /* others append */
    first = r->batches.next;
    pthread_mutex_unlock(&r->lock);
    return first;
}

static struct sl_link *next_batch(struct sl_batch_runner *r, const struct sl_link *link)
{
    struct sl_link *next;

    pthread_mutex_lock(&r->lock);
    next = link->next;
    pthread_mutex_unlock(&r->lock);
    return next;
}

static int write_results(struct sl_batch_runner *r, struct sl_results_file *results,
                         struct sl_err *err)
{
    bool was_restored;
    int rc = sl_results_write(results, &was_restored, err);
    char line[SL_ERR_MESSAGE_BYTES];

    if (rc == 0 && was_restored && r->options.on_note) {
        snprintf(line, sizeof(line), "%s was removed; it was written again", results->path);
        r->options.on_note(r->options.context, line);
    }
    return rc;
}

static int write_batch(struct sl_batch_runner *r, struct sl_batch *batch,
                       struct sl_journal_changes *changes, struct sl_err *err)
{
    struct sl_batch_record record; /* shares the strings */
    char key[KEY_BYTES];
    int rc = 0;

    pthread_mutex_lock(&r->lock);
    record = batch->record;
    pthread_mutex_unlock(&r->lock);
    if (batch->output.lines.length > 0)
        rc = write_results(r, &batch->output, err);
    if (rc == 0 && batch->errors.lines.length > 0)
        rc = write_results(r, &batch->errors, err);
    if (rc < 0)
        return rc;
    record.output_bytes = batch->output.kept_bytes + batch->output.lines.length;
    record.error_bytes = batch->errors.kept_bytes + batch->errors.lines.length;
    batch_key(key, "batch", record.number);
    sl_journal_put_json(changes, key, sl_batch_record_write(&record));
    if (sl_batch_has_ended(record.state))
        remove_items(changes, batch);
    return 0;
}

static void put_made(const struct sl_batch_runner *r, struct sl_journal_changes *changes)
{
    char key[KEY_BYTES];

    for (const struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        const struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        for (uint32_t i = 0; i < live->n_texts; i++) {
            const struct sl_text_made *text = &live->texts[i];
            const struct sl_bytes *records = &text->made.bytes;

            if (records->length == text->kept_bytes)
                continue;
            made_key(key, live->batch->record.number, live->item_index, i, text->n_groups);
            sl_journal_put(changes, key, records->data + text->kept_bytes,
                           records->length - text->kept_bytes);
        }
    }
}

static void keep_made(struct sl_batch_runner *r)
{
    for (struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        for (uint32_t i = 0; i < live->n_texts; i++) {
            struct sl_text_made *text = &live->texts[i];

            text->n_groups += text->made.bytes.length > text->kept_bytes;
            text->kept_bytes = text->made.bytes.length;
        }
    }
}

/* A cancellation may change the record meanwhile, so a copy is shown. */
void sl_batch_tell(struct sl_batch_runner *r, struct sl_batch *batch)
{
    struct sl_batch_record record;
    int rc;

    batch->is_to_tell = false;
    if (!r->options.on_change)
        return;
    pthread_mutex_lock(&r->lock);
    rc = sl_batch_record_copy(&record, &batch->record);
    pthread_mutex_unlock(&r->lock);
    if (rc == 0) {
        rc = r->options.on_change(r->options.context, &record);
        sl_batch_record_fini(&record);
    }
    batch->is_to_tell = rc < 0;
    batch->tell_ns = sl_clock_ns() + r->options.retry_ns;
}

static void keep_batch(struct sl_batch_runner *r, struct sl_batch *batch)
{
    sl_results_keep(&batch->output);
    sl_results_keep(&batch->errors);
    pthread_mutex_lock(&r->lock);
    batch->record.output_bytes = batch->output.kept_bytes;
    batch->record.error_bytes = batch->errors.kept_bytes;
    batch->kept_state = batch->record.state;
    pthread_mutex_unlock(&r->lock);
    batch->has_changed = false;
    if (batch->is_to_tell)
        sl_batch_tell(r, batch);
    if (sl_batch_has_ended(batch->record.state))
        sl_batch_empty(batch);
}

int sl_batch_commit(struct sl_batch_runner *r, struct sl_err *err)
{
    struct sl_journal_changes changes = {0};
    int rc = 0;

    for (struct sl_link *at = first_batch(r); rc == 0 && at != &r->batches; at = next_batch(r, at))
        if (batch_at(at)->has_changed)
            rc = write_batch(r, batch_at(at), &changes, err);
    /* Entries that go with a batch may not come again, so those of its items are put first. */
    if (rc == 0) {
        struct sl_journal_changes all = {0};

        sl_bytes_add(&all.bytes, r->lasting.bytes.data, r->lasting.bytes.length);
        sl_bytes_add(&all.bytes, changes.bytes.data, changes.bytes.length);
        all.bytes.out_of_memory |= r->lasting.bytes.out_of_memory || changes.bytes.out_of_memory;
        put_made(r, &all);
        rc = sl_journal_commit(r->options.journal, &all, err);
        sl_journal_changes_fini(&all);
    }
    sl_journal_changes_fini(&changes);
    if (rc < 0)
        return rc;
    r->committed_ns = sl_clock_ns();
    r->has_ended_items = false;
    sl_journal_changes_clear(&r->lasting);
    keep_made(r);
    for (struct sl_link *at = first_batch(r); at != &r->batches; at = next_batch(r, at))
        if (batch_at(at)->has_changed)
            keep_batch(r, batch_at(at));
    return 0;
}

int sl_batch_put_text(struct sl_batch_runner *r, const char *kind, uint32_t number,
                      const char *text, struct sl_err *err)
{
    struct sl_journal_changes changes = {0};
    char key[KEY_BYTES];
    int rc;

    batch_key(key, kind, number);
    sl_journal_put(&changes, key, text, strlen(text));
    rc = sl_journal_commit(r->options.journal, &changes, err);
    sl_journal_changes_fini(&changes);
    return rc;
}

int sl_batch_remove(struct sl_batch_runner *r, uint32_t number, struct sl_err *err)
{
    static const char *const kinds[] = {"batch", "about", "cancel"};
    struct sl_journal_changes changes = {0};
    char key[KEY_BYTES];
    int rc;

    for (size_t i = 0; i < SL_ARRAY_LEN(kinds); i++) {
        batch_key(key, kinds[i], number);
        sl_journal_remove(&changes, key);
    }
    rc = sl_journal_commit(r->options.journal, &changes, err);
    sl_journal_changes_fini(&changes);
    return rc;
}

int sl_batch_enter(struct sl_batch_runner *r, const struct sl_batch_record *record,
                   struct sl_err *err)
{
    const char *identity = r->options.model_identity;
    struct sl_journal_changes changes = {0};
    char key[KEY_BYTES];
    int rc;

    batch_key(key, "batch", record->number);
    sl_journal_put_json(&changes, key, sl_batch_record_write(record));
    sl_journal_put(&changes, "model", identity, strlen(identity));
    if (record->about) {
        batch_key(key, "about", record->number);
        sl_journal_put(&changes, key, record->about, strlen(record->about));
    }
    rc = sl_journal_commit(r->options.journal, &changes, err);
    sl_journal_changes_fini(&changes);
    return rc;
}

/* ---- loading -----------------------------------------------------------------------------------
 */

static struct sl_batch *find_number(struct sl_batch_runner *r, unsigned number)
{
    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next)
        if (batch_at(at)->record.number == number)
            return batch_at(at);
    return NULL;
}

static int no_sense(const char *key, struct sl_err *err)
{
    return sl_err_set(err, -SL_EFORMAT, "the journal's entry \"%s\" makes no sense", key);
}

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "journal: out of memory");
}

/* An sl_catalog_entry_fn, as are the ones below. */
static int load_batch(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                      struct sl_err *err)
{
    struct sl_batch_runner *r = context;
    struct sl_batch *batch = sl_batch_create();
    char expected[KEY_BYTES];
    int rc;

    if (!batch)
        return no_memory(err);
    rc = sl_batch_record_read(&batch->record, (const char *)value, size_bytes, key, err);
    batch_key(expected, "batch", batch->record.number);
    if (rc == 0 && strcmp(expected, key) != 0)
        rc = no_sense(key, err);
    if (rc == 0 && batch->record.n_items > 0) {
        batch->states = calloc(batch->record.n_items, 1);
        batch->tries = calloc(batch->record.n_items, 1);
        if (!batch->states || !batch->tries)
            rc = no_memory(err);
    }
    if (rc < 0) {
        sl_batch_destroy(batch);
        return rc;
    }
    sl_results_init(&batch->output, r->options.writer, batch->record.output_path,
                    batch->record.output_bytes);
    sl_results_init(&batch->errors, r->options.writer, batch->record.error_path,
                    batch->record.error_bytes);
    batch->kept_state = batch->record.state;
    sl_list_append(&r->batches, &batch->link);
    r->n_batches++;
    r->next_number = batch->record.number + 1;
    return 0;
}

static int load_about(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                      struct sl_err *err)
{
    struct sl_batch *batch;
    unsigned number;

    if (sscanf(key, "about/%8x", &number) != 1 || !(batch = find_number(context, number)))
        return no_sense(key, err);
    batch->record.about = strndup((const char *)value, size_bytes);
    return batch->record.about ? 0 : no_memory(err);
}

static int load_cancel(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                       struct sl_err *err)
{
    struct sl_batch *batch;
    unsigned number;

    (void)value;
    (void)size_bytes;
    if (sscanf(key, "cancel/%8x", &number) != 1 || !(batch = find_number(context, number)))
        return no_sense(key, err);
    batch->cancel_wanted = !sl_batch_has_ended(batch->record.state);
    return 0;
}

static int load_item(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                     struct sl_err *err)
{
    char text[ITEM_BYTES_MAX + 1] = "", kind;
    unsigned number, item, n_tokens = 0;
    struct sl_batch *batch;

    if (size_bytes <= ITEM_BYTES_MAX)
        memcpy(text, value, size_bytes);
    if (sscanf(key, "item/%8x/%8x", &number, &item) != 2 ||
        !(batch = find_number(context, number)) || item >= batch->record.n_items ||
        sscanf(text, "%c %u", &kind, &n_tokens) < 1 || !strchr("dcf", kind))
        return no_sense(key, err);
    batch->states[item] = kind == 'f' ? SL_ITEM_FAILED : SL_ITEM_DONE;
    if (n_tokens == 0) /* failed, or of an older journal */
        return 0;
    if (!batch->lengths && !(batch->lengths = calloc(1, sizeof(*batch->lengths))))
        return no_memory(err);
    sl_answer_lengths_add(batch->lengths, n_tokens, kind == 'c');
    return 0;
}

static struct sl_saved_item *saved_item(struct sl_batch *batch, uint32_t item_index)
{
    struct sl_saved_item *saved;

    if (!sl_list_is_empty(&batch->saved)) { /* the entries of an item come one after the other */
        saved = sl_list_item(batch->saved.prev, struct sl_saved_item, link);
        if (saved->item_index == item_index)
            return saved;
    }
    saved = calloc(1, sizeof(*saved));
    if (!saved)
        return NULL;
    saved->item_index = item_index;
    saved->n_texts = SL_REQUEST_CHOICES_MAX;
    saved->texts = calloc(saved->n_texts, sizeof(*saved->texts));
    if (!saved->texts) {
        free(saved);
        return NULL;
    }
    sl_list_append(&batch->saved, &saved->link);
    return saved;
}

/* Groups come in order. */
static int load_made(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                     struct sl_err *err)
{
    struct sl_batch_runner *r = context;
    unsigned number, item, index, group;
    struct sl_saved_item *saved;
    struct sl_text_made *text;
    struct sl_batch *batch;

    if (sscanf(key, "made/%8x/%8x/%2x/%8x", &number, &item, &index, &group) != 4 ||
        !(batch = find_number(r, number)) || item >= batch->record.n_items ||
        index >= SL_REQUEST_CHOICES_MAX || batch->states[item] != SL_ITEM_WAITING)
        return no_sense(key, err);
    saved = saved_item(batch, item);
    if (!saved)
        return no_memory(err);
    text = &saved->texts[index];
    if (group != text->n_groups || sl_made_tokens_append(&text->made, value, size_bytes,
                                                         r->options.model->config->vocab_size) < 0)
        return no_sense(key, err);
    text->n_groups++;
    text->kept_bytes = text->made.bytes.length;
    return text->made.bytes.out_of_memory ? no_memory(err) : 0;
}

static int check_counts(const struct sl_batch *batch, struct sl_err *err)
{
    uint32_t n_done = 0, n_failed = 0;

    if (sl_batch_has_ended(batch->record.state))
        return 0;
    for (uint32_t i = 0; i < batch->record.n_items; i++) {
        n_done += batch->states[i] == SL_ITEM_DONE;
        n_failed += batch->states[i] == SL_ITEM_FAILED;
    }
    if (n_done == batch->record.n_done && n_failed == batch->record.n_failed)
        return 0;
    return sl_err_set(err, -SL_EFORMAT, "the journal has %u items of %s as done, but counts %u",
                      n_done + n_failed, batch->record.id,
                      batch->record.n_done + batch->record.n_failed);
}

int sl_batch_load(struct sl_batch_runner *r, struct sl_err *err)
{
    const struct sl_catalog_entries *entries = sl_journal_entries(r->options.journal);
    const char *identity = r->options.model_identity;
    const uint8_t *model;
    size_t size_bytes;
    int rc;

    if (sl_catalog_entries_get(entries, "model", &model, &size_bytes) &&
        (size_bytes != strlen(identity) || memcmp(model, identity, size_bytes) != 0))
        return sl_err_set(err, -EINVAL,
                          "the journal is of another model or other numerics (%.*s, but this is "
                          "%s): results of both would be mixed; a checkpoint that was copied is "
                          "the same model if its files kept their times (cp -p)",
                          (int)(size_bytes < 100 ? size_bytes : 100), (const char *)model,
                          identity);
    if ((rc = sl_catalog_entries_each(entries, "batch/", load_batch, r, err)) < 0 ||
        (rc = sl_catalog_entries_each(entries, "about/", load_about, r, err)) < 0 ||
        (rc = sl_catalog_entries_each(entries, "cancel/", load_cancel, r, err)) < 0 ||
        (rc = sl_catalog_entries_each(entries, "item/", load_item, r, err)) < 0 ||
        (rc = sl_catalog_entries_each(entries, "made/", load_made, r, err)) < 0)
        return rc;
    for (struct sl_link *at = r->batches.next; rc == 0 && at != &r->batches; at = at->next)
        rc = check_counts(batch_at(at), err);
    sl_journal_forget(r->options.journal);
    return rc;
}
