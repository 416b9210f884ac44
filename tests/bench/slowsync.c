/* Loaded before the C library (LD_PRELOAD), it makes each sync of a file take SLOWSYNC_US microseconds longer: as long as
 * on a disk that people have. cc -O2 -shared -fPIC -o slowsync.so slowsync.c */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*sync_function)(int);

static int slowly(const char *name, int file) {
    const char *microseconds = getenv("SLOWSYNC_US");
    if (microseconds)
        usleep((useconds_t)atoi(microseconds));
    return ((sync_function)dlsym(RTLD_NEXT, name))(file);
}

int fsync(int file) { return slowly("fsync", file); }
int fdatasync(int file) { return slowly("fdatasync", file); }
