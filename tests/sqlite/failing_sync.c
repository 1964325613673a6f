// Preloaded into a test's process: `fsync` and `fdatasync` fail while the file that
// KEYGATE_FAIL_SYNC names is there, and once for the one that KEYGATE_FAIL_SYNC_ONCE names.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int sync_with(const char *name, int file) {
    const char *always = getenv("KEYGATE_FAIL_SYNC"), *once = getenv("KEYGATE_FAIL_SYNC_ONCE");
    if ((always && access(always, F_OK) == 0) || (once && unlink(once) == 0)) {
        errno = EIO;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }
