/* Checks a MODEL on this machine: whether it can be read, whether it fits, and how fast its drives
 * deliver. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/size.h"
#include "daemon/engine/engine.h"
#include "storage/io/io_probe.h"
#include "tools/cmd/doctor.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/expert_files.h"

#define CONTEXT_TOKENS_DEFAULT 8192u
#define TYPE_BYTES 32u

/* Every NVMe drive reads faster than this, and hard disks and networks hardly do. */
#define DRIVE_RATE_MIN 1e9

static void find_model(struct sl_doctor *doctor, const struct sl_expert_files *files,
                       const char *folder)
{
    const char *const form = files->model.store ? "a store"
                                                : "a checkpoint as published; sluice pack makes "
                                                  "a form of it that is read faster";

    /* Each file is open twice: for its headers or dense weights, and to stream experts from. */
    doctor->n_files = 2 * files->n_files;
    sl_doctor_find(doctor, SL_DOCTOR_OK, "model", NULL, "%s: %s", folder, form);
}

static void find_fit(struct sl_doctor *doctor, const struct sl_config *config, const char *folder)
{
    struct sl_engine_options options = {
        .model = folder,
        .affinity = sl_choose_affinity(0),
        .context_tokens = config->max_position_embeddings < CONTEXT_TOKENS_DEFAULT
                              ? config->max_position_embeddings
                              : CONTEXT_TOKENS_DEFAULT,
        .n_sequences = 1,
    };
    struct sl_memory_plan plan;
    struct sl_err err = {0};
    char text[SL_SIZE_TEXT_BYTES];
    int verdict = 0, rc = sl_engine_plan(&options, &plan, &verdict, &err);

    if (rc < 0 || verdict < 0) {
        sl_doctor_find(doctor, SL_DOCTOR_NO, "fit",
                       rc < 0 ? "(as it says)"
                              : "(more memory, or a shorter --context; sluice inspect MODEL shows "
                                "who needs it)",
                       "%s", err.message);
        return;
    }
    doctor->memory_bytes = sl_memory_plan_bytes(&plan);
    sl_doctor_find(doctor, SL_DOCTOR_OK, "fit", NULL,
                   "a run takes %s; its cache holds %llu of %llu experts",
                   sl_size_format(doctor->memory_bytes, text),
                   (unsigned long long)(plan.need_bytes[SL_MEMORY_CACHE] / plan.slot_bytes),
                   (unsigned long long)plan.slots_max);
}

/* Gives the type of the file system that a file is on, from /proc/self/mountinfo: "36 35 98:0 /root
 * /mnt rw,noatime master:1 - ext4 /dev/root rw" where 36 is the number of the mount. */
static void filesystem_type(const char *path, char type[TYPE_BYTES])
{
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    unsigned long long number;
    struct statx status;
    char line[4096];

    snprintf(type, TYPE_BYTES, "this file system");
    if (mounts && statx(AT_FDCWD, path, 0, STATX_MNT_ID, &status) == 0 &&
        status.stx_mask & STATX_MNT_ID) {
        while (fgets(line, sizeof(line), mounts)) {
            const char *end = strstr(line, " - ");

            if (end && sscanf(line, "%llu", &number) == 1 && number == status.stx_mnt_id)
                snprintf(type, TYPE_BYTES, "%.*s", (int)strcspn(end + 3, " \n"), end + 3);
        }
    }
    if (mounts)
        fclose(mounts);
}

static void find_file_system(struct sl_doctor *doctor, const struct sl_io *io)
{
    char type[TYPE_BYTES];

    filesystem_type(io->files[0].path, type);
    if (io->direct)
        sl_doctor_find(doctor, SL_DOCTOR_OK, "file system", NULL,
                       "%s, with direct I/O in blocks of %u bytes", type, (unsigned)SL_BLOCK_BYTES);
    else
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "file system",
                       "(move MODEL to ext4, xfs or btrfs on a drive of this machine, whose "
                       "sectors are at most 4 KiB)",
                       "%s, without direct I/O in blocks of %u bytes: the page cache takes part",
                       type, (unsigned)SL_BLOCK_BYTES);
}

static void find_drive(struct sl_doctor *doctor, struct sl_io *io)
{
    char rate[SL_SIZE_TEXT_BYTES], piece[SL_SIZE_TEXT_BYTES];
    const char *const plural = io->n_drives == 1 ? "" : "s together";
    struct sl_io_probe probe;
    struct sl_err err = {0};

    if (sl_io_probe(io, 0, &probe, &err) < 0) {
        sl_doctor_find(doctor, SL_DOCTOR_NO, "drive", "sudo smartctl -a /dev/DRIVE  (and dmesg)",
                       "%s", err.message);
        return;
    }
    sl_size_format(probe.piece_bytes, piece);
    snprintf(rate, sizeof(rate), "%.2f GB/s", (double)probe.bytes_per_s * 1e-9);
    if (probe.bytes_per_s == 0)
        sl_doctor_find(doctor, SL_DOCTOR_OK, "drive", NULL,
                       "not timed: that takes direct I/O and files of 1 GiB or more");
    else if ((double)probe.bytes_per_s < DRIVE_RATE_MIN)
        sl_doctor_find(doctor, SL_DOCTOR_SHORT, "drive",
                       "sluice pack MODEL /nvme1/STORE --stripe /nvme2/DIR  (NVMe drives)",
                       "%s from %u drive%s: experts are read for most tokens", rate, io->n_drives,
                       plural);
    else
        sl_doctor_find(doctor, SL_DOCTOR_OK, "drive", NULL,
                       "%s from %u drive%s (%s at a time, %u in flight)", rate, io->n_drives,
                       plural, piece, probe.depth);
}

void sl_doctor_model(struct sl_doctor *doctor, const char *folder)
{
    struct sl_expert_files files;
    struct sl_err err = {0};
    struct sl_io *io;
    int rc = sl_expert_files_open(&files, folder, &err);

    if (rc == 0) {
        find_model(doctor, &files, folder);
        find_fit(doctor, &files.config, folder);
        rc = sl_io_choose(NULL)(&io, files.paths, files.n_files, SL_IO_PROBE_DEPTH_MAX, &err);
    }
    if (rc == 0) {
        find_file_system(doctor, io);
        find_drive(doctor, io);
        io->ops->close(io);
    } else {
        sl_doctor_find(doctor, SL_DOCTOR_NO, "model",
                       rc == -ENOENT ? "hf download deepseek-ai/DeepSeek-V4-Flash --local-dir MODEL"
                                     : "(as it says)",
                       "%s", err.message);
    }
    sl_expert_files_close(&files);
}
