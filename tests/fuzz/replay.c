/* Runs a fuzz harness over files, without a fuzzer: the main() of every harness in an ordinary
 * build. Each argument is a file or a folder of files. */
#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"

#define INPUT_BYTES_MAX (UINT64_C(64) << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void die(const char *message)
{
    fprintf(stderr, "replay: %s\n", message);
    exit(1);
}

static void replay_file(const char *path)
{
    struct sl_err err;
    char *text, *exact;
    size_t length;

    if (sl_file_read_all(path, INPUT_BYTES_MAX, &text, &length, &err) < 0)
        die(err.message);
    /* A block of just the right size, so that reading past the input shows under a sanitizer. */
    exact = malloc(length ? length : 1);
    if (!exact)
        die("out of memory");
    memcpy(exact, text, length);
    free(text);
    LLVMFuzzerTestOneInput((const uint8_t *)exact, length);
    free(exact);
}

static unsigned replay_folder(const char *path)
{
    struct dirent **entries;
    int n_entries = scandir(path, &entries, NULL, alphasort);
    unsigned n_files = 0;

    if (n_entries < 0)
        die(path);
    for (int i = 0; i < n_entries; i++) {
        char *file;

        if (entries[i]->d_name[0] != '.') {
            if (asprintf(&file, "%s/%s", path, entries[i]->d_name) < 0)
                die("out of memory");
            replay_file(file);
            free(file);
            n_files++;
        }
        free(entries[i]);
    }
    free(entries);
    return n_files;
}

int main(int argc, char **argv)
{
    unsigned n_files = 0;

    for (int i = 1; i < argc; i++) {
        struct stat status;

        if (stat(argv[i], &status) == 0 && S_ISDIR(status.st_mode)) {
            n_files += replay_folder(argv[i]);
        } else {
            replay_file(argv[i]);
            n_files++;
        }
    }
    printf("%s: %u inputs\n", argv[0], n_files);
    return 0;
}
