/* A stand-in for NVIDIA's libnvidia-ml.so.1. Reads the file named by STUB_NVML_FILE at every call, so that a test
 * changes the machine while a program runs. One fact a line, fields parted by blanks; library.py writes them:
 *
 *   driver 570.86.15
 *   generation 2                       a driver reloaded: what was initialised under another answers 999 (unknown)
 *   fail FUNCTION CODE [UUID]          FUNCTION ("*": each with a device) answers CODE, for all or for one device
 *   hang FUNCTION FIFO                 FUNCTION waits until somebody has opened FIFO for writing
 *   gpu UUID total=M reserved=M used=M name=A_B mig=on|off ecc=N pending=0|1 failure=0|1 retired=0|1
 *   mig UUID total=M ...               a slice, or "mig -" for an empty slot, of the gpu above it
 *
 * M is MiB; "_" in a name is a blank; mig, ecc, pending (with failure) and retired are unsupported where not given.
 * No file: no driver is loaded. A handle is (gpu + 1) << 8 | (slot + 1).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK, UNINITIALIZED, BAD_ARGUMENT, NOT_SUPPORTED };
enum { NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9, BAD_VERSION = 25, UNKNOWN = 999 };
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
static int users, born;

static FILE *facts(void) {
    const char *path = getenv("STUB_NVML_FILE");
    return path ? fopen(path, "r") : NULL;
}

static int generation(void) {
    char line[1024];
    int found = 1;
    FILE *file = facts();
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) sscanf(line, "generation %d", &found);
    fclose(file);
    return found;
}

/* The line of a device, NULL when there is none; with `count`, how many gpus, or slots of this gpu, there are. */
static char *device(uintptr_t handle, char *line, int *count) {
    unsigned gpu = 0, slot = 0, total = 0;
    FILE *file = facts();
    int found = 0;
    while (file && !found && fgets(line, 1024, file)) {
        if (!strncmp(line, "gpu ", 4)) gpu++, slot = 0, total += !handle;
        else if (!strncmp(line, "mig ", 4)) slot++, total += handle >> 8 == gpu;
        else continue;
        found = !count && handle == ((uintptr_t)gpu << 8 | slot);
    }
    if (file) fclose(file);
    if (count) *count = total;
    return found ? line : NULL;
}

static int text(const char *line, const char *key, char *value, unsigned size) {
    char pattern[32];
    const char *at = line && snprintf(pattern, sizeof pattern, " %s=", key) ? strstr(line, pattern) : NULL;
    if (at) at += strlen(pattern);
    if (at) snprintf(value, size, "%.*s", (int)strcspn(at, " \n"), at);
    return at != NULL;
}

static unsigned long long number(const char *line, const char *key) {
    char value[32];
    return text(line, key, value, sizeof value) ? strtoull(value, NULL, 10) : 0;
}

static void uuid_of(const char *line, char *uuid) {
    *uuid = 0;
    if (line) sscanf(line, "%*s %95s", uuid);
}

/* What every call answers before it looks at anything: OK, or what the file says. */
static int answer(const char *function, uintptr_t handle) {
    char line[1024], name[64], word[256], uuid[96], of[96];
    int code, failed = OK, now = generation();
    if (now < 0) return NOT_LOADED;
    uuid_of(handle ? device(handle, line, NULL) : NULL, uuid);
    FILE *file = facts();
    while (file && !failed && fgets(line, sizeof line, file)) {
        int fields = sscanf(line, "fail %63s %d %95s", name, &code, of);
        int meant = fields >= 2 && (!strcmp(name, function) || (handle && !strcmp(name, "*")));
        if (meant && (fields == 2 || !strcmp(of, uuid))) failed = code;
        if (sscanf(line, "hang %63s %255s", name, word) == 2 && !strcmp(name, function)) {
            FILE *fifo = fopen(word, "r");
            if (fifo) fclose(fifo);
        }
    }
    if (file) fclose(file);
    if (failed || !strncmp(function, "nvmlInit", 8)) return failed;
    if (!users) return UNINITIALIZED;
    return now == born ? OK : UNKNOWN;
}

static int copied(const char *value, char *out, unsigned size) {
    return snprintf(out, size, "%s", value) < (int)size ? OK : TOO_SMALL;
}

/* Begins each call about a device: `line` is its line afterwards. */
#define DEVICE(handle) \
    char line[1024]; \
    int code = answer(__func__, handle); \
    if (code) return code; \
    if (!device(handle, line, NULL)) return BAD_ARGUMENT

int nvmlInitWithFlags(unsigned flags) {
    int code = answer(__func__, 0);
    (void)flags;
    if (!code) users++, born = generation();
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return OK;
}

const char *nvmlErrorString(int code) { return code == UNKNOWN ? "Unknown Error" : "An error of the stub"; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    char line[1024], found[80] = "";
    int code = answer(__func__, 0);
    FILE *file = code ? NULL : facts();
    while (file && fgets(line, sizeof line, file)) sscanf(line, "driver %79s", found);
    if (file) fclose(file);
    return code ? code : copied(found, version, size);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char line[1024];
    int code = answer(__func__, 0);
    if (!code) device(0, line, (int *)count);
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, uintptr_t *out) {
    uintptr_t handle = (uintptr_t)(index + 1) << 8;
    DEVICE(handle);
    *out = handle;
    return OK;
}

int nvmlDeviceGetUUID(uintptr_t handle, char *uuid, unsigned size) {
    char found[96];
    DEVICE(handle);
    uuid_of(line, found);
    return copied(found, uuid, size);
}

int nvmlDeviceGetName(uintptr_t handle, char *name, unsigned size) {
    char found[96];
    DEVICE(handle);
    if (!text(line, "name", found, sizeof found)) return NOT_SUPPORTED;
    for (char *at = found; *at; at++) if (*at == '_') *at = ' ';
    return copied(found, name, size);
}

int nvmlDeviceGetMemoryInfo(uintptr_t handle, memory_v1 *memory) {
    DEVICE(handle);
    memory->total = number(line, "total") << 20;
    memory->used = (number(line, "reserved") + number(line, "used")) << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(uintptr_t handle, memory_v2 *memory) {
    DEVICE(handle);
    if (memory->version != (2u << 24 | sizeof *memory)) return BAD_VERSION;
    memory->total = number(line, "total") << 20;
    memory->reserved = number(line, "reserved") << 20;
    memory->used = number(line, "used") << 20;
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}

int nvmlDeviceGetMigMode(uintptr_t handle, unsigned *current, unsigned *pending) {
    char mode[8];
    DEVICE(handle);
    if (!text(line, "mig", mode, sizeof mode)) return NOT_SUPPORTED;
    *current = *pending = !strcmp(mode, "on");
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(uintptr_t handle, unsigned *count) {
    DEVICE(handle);
    device(handle, line, (int *)count);
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(uintptr_t handle, unsigned index, uintptr_t *out) {
    DEVICE(handle);
    if (!device(handle | (index + 1), line, NULL) || !strncmp(line, "mig -", 5)) return NOT_FOUND;
    return answer(__func__, *out = handle | (index + 1));
}

int nvmlDeviceGetTotalEccErrors(uintptr_t handle, int kind, int counter, unsigned long long *count) {
    char given[32];
    DEVICE(handle);
    if (!text(line, "ecc", given, sizeof given)) return NOT_SUPPORTED;
    *count = kind == 1 && counter == 0 ? number(line, "ecc") : 0;
    return OK;
}

int nvmlDeviceGetRetiredPagesPendingStatus(uintptr_t handle, unsigned *pending) {
    char given[32];
    DEVICE(handle);
    if (!text(line, "retired", given, sizeof given)) return NOT_SUPPORTED;
    *pending = (unsigned)number(line, "retired");
    return OK;
}

int nvmlDeviceGetRemappedRows(uintptr_t handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failure) {
    char given[32];
    DEVICE(handle);
    if (!text(line, "pending", given, sizeof given)) return NOT_SUPPORTED;
    *corrected = *uncorrected = 0;
    *pending = (unsigned)number(line, "pending");
    *failure = (unsigned)number(line, "failure");
    return OK;
}
