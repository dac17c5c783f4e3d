/* Owns the shards' descriptors and the table of tensors; what a header may say is decided in
 * storage/checkpoint/safetensors.c. The table is one array sorted by name: 145,116 names sort in 60
 * ms and are found in a microsecond, so a hash table would not show. */
#include "storage/checkpoint/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/plain_json.h"
#include "storage/io/checksum.h"
#include "storage/checkpoint/safetensors.h"
#include "storage/checkpoint/tensor_spelling.h"

#define INDEX_BYTES_MAX (UINT64_C(128) << 20) /* Pro's has 15 MB */
#define SHARD_SUFFIX ".safetensors"

/* Twice as many descriptors, since the experts' reader opens the files again, stay below the usual
 * limit of 1,024. Pro has 66. */
#define SHARDS_MAX 480

/* More threads than that hardly open Pro any faster, and a few files need no other thread. */
#define PARSERS_MAX 3u
#define SHARDS_PER_THREAD 8u

struct shard {
    char *path;
    char *names; /* the names of its tensors */
    uint64_t size_bytes;
    uint64_t header_bytes;
    int fd; /* -1 until opened */
    bool bad;
};

struct sl_checkpoint {
    struct sl_weight_source weights; /* first: the source is the checkpoint */
    char *folder;
    bool may_be_cut;
    sl_bad_file_fn *on_bad; /* NULL: a bad file is an error */
    void *on_bad_context;
    struct shard *shards; /* by path */
    uint32_t shard_count;
    struct sl_checkpoint_tensor *tensors; /* by name, once open */
    uint32_t tensor_count;                /* below SHARDS_MAX times a header's bytes: fits */
};

static int no_memory(const struct sl_checkpoint *checkpoint, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", checkpoint->folder);
}

static const char *base_name(const struct shard *shard)
{
    return strrchr(shard->path, '/') + 1;
}

/* ---- Which files ---- */

/* Neighbours in the index mostly name the same shard: a repetition of the last one is dropped here,
 * the others by sort_shards(). */
static int add_shard(struct sl_checkpoint *checkpoint, const char *name, struct sl_err *err)
{
    uint32_t count = checkpoint->shard_count;
    struct shard *shards = checkpoint->shards;
    char *path;

    if (count && strcmp(base_name(&shards[count - 1]), name) == 0)
        return 0;
    if ((count & (count + 1)) == 0) { /* full: room for 1, 3, 7, ... */
        shards = realloc(shards, (2 * (size_t)count + 1) * sizeof(*shards));
        if (!shards)
            return no_memory(checkpoint, err);
        checkpoint->shards = shards;
    }
    if (asprintf(&path, "%s/%s", checkpoint->folder, name) < 0)
        return no_memory(checkpoint, err);
    shards[count] = (struct shard){.path = path, .fd = -1};
    checkpoint->shard_count++;
    return 0;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(((const struct shard *)a)->path, ((const struct shard *)b)->path);
}

static int sort_shards(struct sl_checkpoint *checkpoint, struct sl_err *err)
{
    struct shard *shards = checkpoint->shards;
    uint32_t kept = 0;

    if (checkpoint->shard_count == 0)
        return sl_err_set(err, -ENOENT, "%s: no *%s files: not a checkpoint folder",
                          checkpoint->folder, SHARD_SUFFIX);
    qsort(shards, checkpoint->shard_count, sizeof(*shards), compare_paths);
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        if (kept && strcmp(shards[i].path, shards[kept - 1].path) == 0)
            free(shards[i].path);
        else
            shards[kept++] = shards[i];
    }
    checkpoint->shard_count = kept;
    if (kept > SHARDS_MAX)
        return sl_err_set(err, -SL_EFORMAT, "%s: %u files of tensors, expected at most %d",
                          checkpoint->folder, kept, SHARDS_MAX);
    return 0;
}

/* A line of the index: which tensor is said to be in which file. */
struct line {
    const char *tensor, *file;
};

/* The index, whose lines point into the text; or into the values that jansson made of it, where it
 * is not plain. */
struct index {
    char *text;
    json_t *root;
    struct line *lines;
    uint32_t count;
};

static void free_index(struct index *index)
{
    free(index->text);
    free(index->lines);
    json_decref(index->root);
}

/* Reads a plain index; counts its lines alone where there is no room for them, and else ends each
 * string of the text. */
static bool scan_index(struct index *index, size_t length)
{
    struct sl_plain_json json = {index->text, index->text + length};
    bool more = true;

    index->count = 0;
    if (!sl_plain_mark(&json, '{') ||
        (sl_plain_key(&json, "metadata") &&
         !(sl_plain_skip_object(&json) && sl_plain_mark(&json, ','))) ||
        !sl_plain_key(&json, "weight_map") || !sl_plain_mark(&json, '{'))
        return false;
    while (more) {
        struct line line;
        size_t tensor_length, file_length;

        if (!sl_plain_string(&json, &line.tensor, &tensor_length) || !sl_plain_mark(&json, ':') ||
            !sl_plain_string(&json, &line.file, &file_length))
            return false;
        if (index->lines) {
            index->text[line.tensor - index->text + (ptrdiff_t)tensor_length] = '\0';
            index->text[line.file - index->text + (ptrdiff_t)file_length] = '\0';
            index->lines[index->count] = line;
        }
        index->count++;
        more = sl_plain_mark(&json, ',');
    }
    return sl_plain_mark(&json, '}') && sl_plain_mark(&json, '}') && sl_plain_end(&json);
}

static int alloc_lines(struct index *index, const char *path, struct sl_err *err)
{
    index->lines = malloc(index->count * sizeof(*index->lines));
    return index->lines ? 0 : sl_err_set(err, -ENOMEM, "%s: out of memory", path);
}

static int list_index(struct index *index, size_t length, const char *path, struct sl_err *err)
{
    const char *tensor;
    json_t *map, *file;
    int rc;

    if (scan_index(index, length)) {
        rc = alloc_lines(index, path, err);
        if (rc == 0)
            scan_index(index, length);
        return rc;
    }
    rc = sl_json_parse(&index->root, index->text, length, path, err);
    if (rc < 0)
        return rc;
    map = json_object_get(index->root, "weight_map");
    index->count = (uint32_t)json_object_size(map);
    if (index->count == 0)
        return sl_err_set(err, -SL_EFORMAT, "%s: \"weight_map\" is not an object that names files",
                          path);
    rc = alloc_lines(index, path, err);
    if (rc < 0)
        return rc;
    index->count = 0;
    json_object_foreach(map, tensor, file) index->lines[index->count++] =
        (struct line){tensor, json_string_value(file)};
    return 0;
}

/* Reads the index, which the caller frees whatever the outcome, and notes the files it names. */
static int read_index(struct sl_checkpoint *checkpoint, const char *path, struct index *index,
                      struct sl_err *err)
{
    size_t length;
    int rc = sl_file_read_all(path, INDEX_BYTES_MAX, &index->text, &length, err);

    if (rc == 0)
        rc = list_index(index, length, path, err);
    for (uint32_t i = 0; rc == 0 && i < index->count; i++) {
        const char *name = index->lines[i].file;

        if (!name || name[0] == '\0' || strchr(name, '/'))
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: tensor \"%.255s\" is said to be in \"%.255s\", expected the "
                              "name of a file in the same folder",
                              path, index->lines[i].tensor, name ? name : "");
        rc = add_shard(checkpoint, name, err);
    }
    return rc;
}

static int list_folder(struct sl_checkpoint *checkpoint, struct sl_err *err)
{
    DIR *dir = opendir(checkpoint->folder);
    const struct dirent *entry;
    int rc = 0;

    if (!dir)
        return sl_err_set(err, -errno, "%s: cannot open the folder: %s", checkpoint->folder,
                          sl_strerror(errno));
    while (rc == 0) {
        size_t length;

        errno = 0;
        entry = readdir(dir);
        if (!entry) {
            if (errno)
                rc = sl_err_set(err, -errno, "%s: cannot list the folder: %s", checkpoint->folder,
                                sl_strerror(errno));
            break;
        }
        length = strlen(entry->d_name);
        if (entry->d_name[0] != '.' && length > strlen(SHARD_SUFFIX) &&
            strcmp(entry->d_name + length - strlen(SHARD_SUFFIX), SHARD_SUFFIX) == 0)
            rc = add_shard(checkpoint, entry->d_name, err);
    }
    closedir(dir);
    return rc;
}

/* ---- One shard ---- */

/* Reads and parses the header of an open shard. */
static int read_header(struct shard *shard, bool may_be_cut, struct sl_safetensors *ret_header,
                       struct sl_err *err)
{
    uint8_t prefix[SL_SAFETENSORS_LENGTH_BYTES] = {0};
    char *text;
    size_t length;
    int64_t got;
    int rc;

    got = sl_file_read_at(shard->fd, prefix, sizeof(prefix), 0);
    if (got < 0)
        return sl_err_set(err, (int)got, "%s: cannot read: %s", shard->path, sl_strerror((int)got));
    rc = sl_safetensors_read_length(prefix, shard->size_bytes, &length, shard->path, err);
    if (rc < 0)
        return rc;
    text = malloc(length + 1); /* + 1: the length may be 0 */
    if (!text)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", shard->path);
    got = sl_file_read_at(shard->fd, text, length, sizeof(prefix));
    if (got < 0)
        rc = sl_err_set(err, (int)got, "%s: cannot read: %s", shard->path, sl_strerror((int)got));
    else if ((size_t)got < length)
        rc = sl_err_set(err, -SL_ECORRUPT, "%s: the file ends inside its header", shard->path);
    else
        rc = sl_safetensors_parse(ret_header, text, length,
                                  may_be_cut ? UINT64_MAX : shard->size_bytes, shard->path, err);
    shard->header_bytes = sizeof(prefix) + length;
    free(text);
    return rc;
}

static int append_tensors(struct sl_checkpoint *checkpoint, uint32_t shard_index,
                          struct sl_safetensors *header, struct sl_err *err)
{
    size_t count = (size_t)checkpoint->tensor_count + header->tensor_count;
    struct sl_checkpoint_tensor *tensors;

    tensors = realloc(checkpoint->tensors, (count + 1) * sizeof(*tensors));
    if (!tensors)
        return no_memory(checkpoint, err);
    checkpoint->tensors = tensors;
    for (uint32_t i = 0; i < header->tensor_count; i++) {
        struct sl_safetensors_tensor *from = &header->tensors[i];

        sl_tensor_respell_name(header->names + (from->name - header->names)); /* not const */
        sl_tensor_respell_type(from->name, &from->info);
        tensors[checkpoint->tensor_count++] =
            (struct sl_checkpoint_tensor){.name = from->name,
                                          .info = from->info,
                                          .offset_bytes = from->offset_bytes,
                                          .file_index = shard_index};
    }
    return 0;
}

/* Opens a shard and parses its header. */
static int open_shard(const struct sl_checkpoint *checkpoint, struct shard *shard,
                      struct sl_safetensors *ret_header, struct sl_err *err)
{
    struct stat status;

    shard->fd = sl_file_open(shard->path, err);
    if (shard->fd < 0)
        return shard->fd;
    if (fstat(shard->fd, &status) < 0)
        return sl_err_set(err, -errno, "%s: cannot stat: %s", shard->path, sl_strerror(errno));
    shard->size_bytes = (uint64_t)status.st_size;
    return read_header(shard, checkpoint->may_be_cut, ret_header, err);
}

/* ---- All shards ---- */

/* Headers are parsed by a few threads, each the next one that nobody has. */
struct parsing {
    struct sl_checkpoint *checkpoint;
    atomic_uint next;
    struct parsed {
        struct sl_safetensors header;
        int rc;
        struct sl_err err;
    } * of; /* (shard_count) each written by one thread, and read when all have ended */
};

static void *parse_shards(void *context)
{
    struct parsing *in = context;
    uint32_t i;

    while ((i = atomic_fetch_add(&in->next, 1)) < in->checkpoint->shard_count)
        in->of[i].rc = open_shard(in->checkpoint, &in->checkpoint->shards[i], &in->of[i].header,
                                  &in->of[i].err);
    return NULL;
}

/* This thread does what no other one could be started for. */
static void parse_together(struct parsing *in)
{
    const uint32_t wanted = in->checkpoint->shard_count / SHARDS_PER_THREAD;
    pthread_t threads[PARSERS_MAX];
    uint32_t n = 0;
    sigset_t all, before;

    sigfillset(&all); /* signals are for those who work on */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (n < wanted && n < PARSERS_MAX &&
           pthread_create(&threads[n], NULL, parse_shards, in) == 0)
        n++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    parse_shards(in);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

/* ---- The table ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct sl_checkpoint_tensor *)a)->name,
                  ((const struct sl_checkpoint_tensor *)b)->name);
}

static int sort_tensors(struct sl_checkpoint *checkpoint, struct sl_err *err)
{
    const struct sl_checkpoint_tensor *tensors = checkpoint->tensors;

    if (checkpoint->tensor_count == 0) /* every shard was passed over, and there is no table */
        return 0;
    qsort(checkpoint->tensors, checkpoint->tensor_count, sizeof(*tensors), compare_names);
    for (uint32_t i = 1; i < checkpoint->tensor_count; i++) {
        if (strcmp(tensors[i].name, tensors[i - 1].name) == 0)
            return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\" is in two files, %s and %s",
                              checkpoint->folder, tensors[i].name,
                              base_name(&checkpoint->shards[tensors[i - 1].file_index]),
                              base_name(&checkpoint->shards[tensors[i].file_index]));
    }
    return 0;
}

/* Reports a bad file where they are reported; otherwise what is in `err` stands. */
static int pass_over(struct sl_checkpoint *checkpoint, uint32_t shard_index, int rc,
                     const struct sl_err *err)
{
    struct shard *shard = &checkpoint->shards[shard_index];

    if (!checkpoint->on_bad || rc == -ENOMEM)
        return rc;
    if (!shard->bad)
        checkpoint->on_bad(checkpoint->on_bad_context, shard->path, err->message);
    shard->bad = true;
    return 0;
}

static uint32_t find_shard(const struct sl_checkpoint *checkpoint, const char *name)
{
    uint32_t i = 0;

    while (strcmp(base_name(&checkpoint->shards[i]), name) != 0)
        i++;
    sl_assert(i < checkpoint->shard_count); /* the list was made from the index */
    return i;
}

/* Most lines name the tensor after the one before. Returns NULL where there is none. */
static const struct sl_checkpoint_tensor *find_after(const struct sl_checkpoint *checkpoint,
                                                     const struct sl_checkpoint_tensor *before,
                                                     const char *name)
{
    const struct sl_checkpoint_tensor *end = checkpoint->tensors + checkpoint->tensor_count;

    if (before && before + 1 < end && strcmp(before[1].name, name) == 0)
        return before + 1;
    return sl_checkpoint_find(checkpoint, name);
}

/* *tensor is the one of the line before, and becomes the line's. */
static int check_line(const struct sl_checkpoint *checkpoint, const char *path,
                      const struct line *line, bool *is_named,
                      const struct sl_checkpoint_tensor **tensor, struct sl_err *err)
{
    const size_t length = strnlen(line->tensor, SL_SAFETENSORS_NAME_BYTES_MAX);
    char name[SL_SAFETENSORS_NAME_BYTES_MAX + 1];
    const char *found;

    memcpy(name, line->tensor, length);
    name[length] = '\0';
    sl_tensor_respell_name(name);
    *tensor = find_after(checkpoint, *tensor, name);
    if (!*tensor)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: tensor \"%.255s\" is said to be in %s, but it is in no file", path,
                          line->tensor, line->file);
    found = base_name(&checkpoint->shards[(*tensor)->file_index]);
    if (strcmp(found, line->file) != 0)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: tensor \"%s\" is said to be in %s, but it is in %s", path,
                          line->tensor, line->file, found);
    if (is_named[*tensor - checkpoint->tensors])
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\" comes twice", path, line->tensor);
    is_named[*tensor - checkpoint->tensors] = true;
    return 0;
}

static int check_index(struct sl_checkpoint *checkpoint, const char *path,
                       const struct index *index, struct sl_err *err)
{
    bool *is_named = calloc(checkpoint->tensor_count + 1, sizeof(*is_named));
    const struct sl_checkpoint_tensor *tensor = NULL;
    int rc = is_named ? 0 : no_memory(checkpoint, err);

    for (uint32_t i = 0; rc == 0 && i < index->count; i++) {
        const struct line *line = &index->lines[i];

        rc = check_line(checkpoint, path, line, is_named, &tensor, err);
        if (rc < 0)
            rc = pass_over(checkpoint, find_shard(checkpoint, line->file), rc, err);
    }
    free(is_named);
    return rc;
}

/* Takes over what a shard's header tells, or its failure. */
static int take_shard(struct sl_checkpoint *checkpoint, uint32_t shard_index, struct parsed *parsed,
                      struct sl_err *err)
{
    int rc = parsed->rc;

    if (rc < 0 && err)
        *err = parsed->err;
    if (rc == 0 && (rc = append_tensors(checkpoint, shard_index, &parsed->header, err)) == 0) {
        checkpoint->shards[shard_index].names = parsed->header.names;
        parsed->header.names = NULL; /* now the shard's */
    }
    return rc < 0 ? pass_over(checkpoint, shard_index, rc, err) : 0;
}

/* Does all that is left to do once the list of files is known. */
static int open_shards(struct sl_checkpoint *checkpoint, struct sl_err *err)
{
    struct parsing parsing = {.checkpoint = checkpoint};
    int rc = sort_shards(checkpoint, err);

    if (rc < 0)
        return rc;
    parsing.of = calloc(checkpoint->shard_count, sizeof(*parsing.of));
    if (!parsing.of)
        return no_memory(checkpoint, err);
    parse_together(&parsing);
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        if (rc == 0)
            rc = take_shard(checkpoint, i, &parsing.of[i], err);
        sl_safetensors_fini(&parsing.of[i].header);
    }
    free(parsing.of);
    return rc == 0 ? sort_tensors(checkpoint, err) : rc;
}

static int open_indexed(struct sl_checkpoint *checkpoint, const char *index_path,
                        struct sl_err *err)
{
    struct index index = {0};
    int rc = read_index(checkpoint, index_path, &index, err);

    if (rc == 0) {
        rc = open_shards(checkpoint, err);
        if (rc == -ENOENT)
            rc = sl_err_prefix(err, rc, "%s names a file that is missing", index_path);
    }
    if (rc == 0)
        rc = check_index(checkpoint, index_path, &index, err);
    free_index(&index);
    return rc;
}

static int open_unindexed(struct sl_checkpoint *checkpoint, struct sl_err *err)
{
    int rc = list_folder(checkpoint, err);

    return rc == 0 ? open_shards(checkpoint, err) : rc;
}

int sl_checkpoint_read(const struct sl_checkpoint *checkpoint, uint32_t file_index,
                       uint64_t offset_bytes, uint64_t size_bytes, void *dst, struct sl_err *err)
{
    const struct shard *shard = &checkpoint->shards[file_index];
    int64_t got = sl_file_read_at(shard->fd, dst, size_bytes, offset_bytes);

    if (got < 0)
        return sl_err_set(err, (int)got, "%s: cannot read %llu bytes at %llu: %s", shard->path,
                          (unsigned long long)size_bytes, (unsigned long long)offset_bytes,
                          sl_strerror((int)got));
    if ((uint64_t)got < size_bytes)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the file now ends at byte %llu, expected to read up to %llu: was it "
                          "cut, or packed with --consume?",
                          shard->path, (unsigned long long)offset_bytes + (uint64_t)got,
                          (unsigned long long)(offset_bytes + size_bytes));
    return 0;
}

/* ---- Identity ---- */

static uint64_t tensors_checksum(const struct sl_checkpoint *checkpoint, uint64_t seed)
{
    char text[SL_TENSOR_TEXT_BYTES];

    for (uint32_t i = 0; i < checkpoint->tensor_count; i++) {
        const struct sl_checkpoint_tensor *tensor = &checkpoint->tensors[i];
        const char *file = base_name(&checkpoint->shards[tensor->file_index]);

        sl_tensor_format(&tensor->info, text);
        seed = sl_checksum_seeded(tensor->name, strlen(tensor->name), seed);
        seed = sl_checksum_seeded(text, strlen(text), seed);
        seed = sl_checksum_seeded(file, strlen(file), seed);
        snprintf(text, sizeof(text), "%llu", (unsigned long long)tensor->offset_bytes);
        seed = sl_checksum_seeded(text, strlen(text), seed);
    }
    return seed;
}

int sl_checkpoint_index_checksum(const struct sl_checkpoint *checkpoint, uint64_t *ret_checksum,
                                 struct sl_err *err)
{
    char *path, *text;
    size_t length;
    int rc = 0;

    if (asprintf(&path, "%s/%s", checkpoint->folder, SL_CHECKPOINT_INDEX) < 0)
        return no_memory(checkpoint, err);
    if (access(path, F_OK) != 0) {
        *ret_checksum = tensors_checksum(checkpoint, 0);
    } else {
        rc = sl_file_read_all(path, INDEX_BYTES_MAX, &text, &length, err);
        if (rc == 0) {
            *ret_checksum = sl_checksum(text, length);
            free(text);
        }
    }
    free(path);
    return rc;
}

/* ---- As a weight source ---- */

static int source_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    const struct sl_checkpoint_tensor *tensor;

    tensor = sl_checkpoint_find((struct sl_checkpoint *)source, name);
    if (!tensor)
        return -ENOENT;
    *ret_info = tensor->info;
    return 0;
}

static int source_read(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                       uint64_t size_bytes, void *dst, struct sl_err *err)
{
    const struct sl_checkpoint *checkpoint = (struct sl_checkpoint *)source;
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(checkpoint, name);
    int rc;

    if (!tensor)
        return sl_err_set(err, -ENOENT, "%s: there is no tensor \"%s\"", checkpoint->folder, name);
    sl_assert(offset_bytes <= tensor->info.size_bytes);
    sl_assert(size_bytes <= tensor->info.size_bytes - offset_bytes);
    rc = sl_checkpoint_read(checkpoint, tensor->file_index, tensor->offset_bytes + offset_bytes,
                            size_bytes, dst, err);
    return rc < 0 ? sl_err_prefix(err, rc, "tensor \"%s\"", name) : 0;
}

static const char *source_where(struct sl_weight_source *source, const char *name)
{
    const struct sl_checkpoint *checkpoint = (struct sl_checkpoint *)source;
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(checkpoint, name);

    return tensor ? checkpoint->shards[tensor->file_index].path : checkpoint->folder;
}

static const struct sl_weight_source_ops source_ops = {
    .find = source_find,
    .read = source_read,
    .where = source_where,
};

/* ---- The outside ---- */

/* Takes over `checkpoint`, which says how it is to be opened; NULL when out of memory. */
static int open_folder(struct sl_checkpoint **ret_checkpoint, struct sl_checkpoint *checkpoint,
                       const char *folder, struct sl_err *err)
{
    char *index_path = NULL;
    int rc;

    if (!checkpoint)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    checkpoint->weights.ops = &source_ops;
    checkpoint->folder = strdup(folder);
    if (!checkpoint->folder || asprintf(&index_path, "%s/%s", folder, SL_CHECKPOINT_INDEX) < 0) {
        index_path = NULL; /* asprintf leaves it undefined */
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
        goto out;
    }
    if (access(index_path, F_OK) == 0)
        rc = open_indexed(checkpoint, index_path, err);
    else
        rc = open_unindexed(checkpoint, err);
    if (rc < 0)
        goto out;
    *ret_checkpoint = checkpoint;
    checkpoint = NULL; /* now the caller's */
out:
    free(index_path);
    sl_checkpoint_close(checkpoint);
    return rc;
}

int sl_checkpoint_open(struct sl_checkpoint **ret_checkpoint, const char *folder,
                       struct sl_err *err)
{
    return open_folder(ret_checkpoint, calloc(1, sizeof(struct sl_checkpoint)), folder, err);
}

int sl_checkpoint_open_cut(struct sl_checkpoint **ret_checkpoint, const char *folder,
                           struct sl_err *err)
{
    struct sl_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));

    if (checkpoint)
        checkpoint->may_be_cut = true;
    return open_folder(ret_checkpoint, checkpoint, folder, err);
}

int sl_checkpoint_survey(struct sl_checkpoint **ret_checkpoint, const char *folder,
                         sl_bad_file_fn *on_bad, void *context, struct sl_err *err)
{
    struct sl_checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    struct sl_err found; /* which on_bad is told */
    int rc;

    if (checkpoint) {
        checkpoint->on_bad = on_bad;
        checkpoint->on_bad_context = context;
    }
    rc = open_folder(ret_checkpoint, checkpoint, folder, &found);
    return rc < 0 ? sl_err_set(err, rc, "%s", found.message) : 0;
}

void sl_checkpoint_close(struct sl_checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        struct shard *shard = &checkpoint->shards[i];

        if (shard->fd >= 0)
            close(shard->fd);
        free(shard->names);
        free(shard->path);
    }
    free(checkpoint->shards);
    free(checkpoint->tensors);
    free(checkpoint->folder);
    free(checkpoint);
}

struct sl_weight_source *sl_checkpoint_weights(struct sl_checkpoint *checkpoint)
{
    return &checkpoint->weights;
}

const char *sl_checkpoint_folder(const struct sl_checkpoint *checkpoint)
{
    return checkpoint->folder;
}

uint32_t sl_checkpoint_tensor_count(const struct sl_checkpoint *checkpoint)
{
    return checkpoint->tensor_count;
}

const struct sl_checkpoint_tensor *sl_checkpoint_tensor_at(const struct sl_checkpoint *checkpoint,
                                                           uint32_t tensor_index)
{
    sl_assert(tensor_index < checkpoint->tensor_count);
    return &checkpoint->tensors[tensor_index];
}

const struct sl_checkpoint_tensor *sl_checkpoint_find(const struct sl_checkpoint *checkpoint,
                                                      const char *name)
{
    struct sl_checkpoint_tensor wanted = {.name = name};

    if (checkpoint->tensor_count == 0)
        return NULL;
    return bsearch(&wanted, checkpoint->tensors, checkpoint->tensor_count,
                   sizeof(*checkpoint->tensors), compare_names);
}

bool sl_checkpoint_has_prefix(const struct sl_checkpoint *checkpoint, const char *prefix)
{
    uint32_t low = 0, high = checkpoint->tensor_count; /* the first name that is not below it */

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (strcmp(checkpoint->tensors[middle].name, prefix) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < checkpoint->tensor_count &&
           strncmp(checkpoint->tensors[low].name, prefix, strlen(prefix)) == 0;
}

uint32_t sl_checkpoint_file_count(const struct sl_checkpoint *checkpoint)
{
    return checkpoint->shard_count;
}

const char *sl_checkpoint_file_path(const struct sl_checkpoint *checkpoint, uint32_t file_index)
{
    sl_assert(file_index < checkpoint->shard_count);
    return checkpoint->shards[file_index].path;
}

uint64_t sl_checkpoint_file_bytes(const struct sl_checkpoint *checkpoint, uint32_t file_index)
{
    sl_assert(file_index < checkpoint->shard_count);
    return checkpoint->shards[file_index].size_bytes;
}

uint64_t sl_checkpoint_header_bytes(const struct sl_checkpoint *checkpoint, uint32_t file_index)
{
    sl_assert(file_index < checkpoint->shard_count);
    return checkpoint->shards[file_index].header_bytes;
}

bool sl_checkpoint_file_is_bad(const struct sl_checkpoint *checkpoint, uint32_t file_index)
{
    sl_assert(file_index < checkpoint->shard_count);
    return checkpoint->shards[file_index].bad;
}

bool sl_checkpoint_has(const struct sl_checkpoint *checkpoint, uint32_t file_index,
                       uint64_t offset_bytes, uint64_t size_bytes)
{
    return offset_bytes + size_bytes <= sl_checkpoint_file_bytes(checkpoint, file_index);
}
