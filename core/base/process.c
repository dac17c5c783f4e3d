#include "core/base/process.h"

#include <malloc.h>
#include <stdbool.h>

/* Private mappings of files are code and its constants, of which every page may come to be used;
 * shared ones are somebody else's to look into, and count as far as they were. */
struct sl_process_memory sl_smaps_process_memory(FILE *smaps)
{
    unsigned long long first, end, inode = 0, kilobytes;
    struct sl_process_memory memory = {0};
    char line[512], permissions[8];
    bool is_code = false;

    while (fgets(line, sizeof(line), smaps)) {
        if (sscanf(line, "%llx-%llx %7s %*s %*s %llu", &first, &end, permissions, &inode) == 4) {
            is_code = inode != 0 && permissions[3] == 'p';
            memory.bytes += is_code ? end - first : 0;
        } else if (sscanf(line, "Rss: %llu kB", &kilobytes) == 1) {
            memory.bytes += is_code ? 0 : kilobytes << 10;
            memory.own_bytes += inode ? 0 : kilobytes << 10;
        }
    }
    return memory;
}

struct sl_process_memory sl_process_memory(void)
{
    struct sl_process_memory memory = {0};
    FILE *smaps;

#ifdef __GLIBC__
    malloc_trim(0);
#endif
    smaps = fopen("/proc/self/smaps", "re");
    if (!smaps)
        return memory;
    memory = sl_smaps_process_memory(smaps);
    fclose(smaps);
    return memory;
}
