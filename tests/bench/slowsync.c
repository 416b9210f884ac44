/* Loaded before the C library (LD_PRELOAD), it makes each sync of a file take SLOWSYNC_US microseconds longer: as long as
 * on a disk that people have; and it adds one to the 8-byte counter in the file SLOWSYNC_COUNT for each.
 * cc -O2 -shared -fPIC -o slowsync.so slowsync.c */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int (*sync_function)(int);

static useconds_t slower_us;
static uint64_t *counter;

__attribute__((constructor)) static void set_up(void) {
    const char *microseconds = getenv("SLOWSYNC_US"), *path = getenv("SLOWSYNC_COUNT");
    slower_us = microseconds ? (useconds_t)atoi(microseconds) : 0;
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        counter = mapped == MAP_FAILED ? NULL : mapped;
        close(file);
    }
}

static int slowly(const char *name, int file) {
    if (counter)
        __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    if (slower_us)
        usleep(slower_us);
    return ((sync_function)dlsym(RTLD_NEXT, name))(file);
}

int fsync(int file) { return slowly("fsync", file); }
int fdatasync(int file) { return slowly("fdatasync", file); }
