/* Preloaded by tests/fault_points.py: counts the calls that change files under a folder, and
 * strikes at one of them, in whatever language it is made: torch writes in C++, safetensors in
 * Rust. Armed by `arm`; until then, and for other files, every call is the C library's own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL };
static char folder[4096];
static int kind, at, error_number, journal = -1;
static atomic_int calls;

/* Under `prefix`: note each call to the descriptor `log`, strike at call `number`. */
void arm(const char *prefix, int how, int number, int error, int log) {
    atomic_store(&calls, 0);
    kind = how, at = number, error_number = error, journal = log;
    strncpy(folder, prefix, sizeof folder - 1);
}

static int strikes(const char *name, const char *path) {
    if (!folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
    int number = atomic_fetch_add(&calls, 1);
    if (journal >= 0) {
        char line[4600];
        int length = snprintf(line, sizeof line, "%s %s\n", name, path + strlen(folder));
        syscall(SYS_write, journal, line, length);
    }
    return kind != COUNT && number == at;
}

static const char *of_descriptor(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlink, link, path, 4095);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *at_folder(int fd, const char *name, char *path) {
    if (fd == AT_FDCWD || name[0] == '/') return name;
    of_descriptor(fd, path);
    strncat(path, "/", 4095 - strlen(path));
    return strncat(path, name, 4095 - strlen(path));
}

static int struck(void) {
    if (kind == KILL) kill(getpid(), SIGKILL);
    errno = error_number;
    return -1;
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t count) {
    char path[4096];
    if (folder[0] && strikes("write", of_descriptor(fd, path))) {
        if (kind == KILL) syscall(SYS_write, fd, bytes, count / 2); /* a torn write */
        return struck();
    }
    return REAL(ssize_t, write, int, const void *, size_t)(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[4096];
    if (folder[0] && strikes("write", of_descriptor(fd, path))) return struck();
    return REAL(ssize_t, writev, int, const struct iovec *, int)(fd, parts, count);
}

int fsync(int fd) {
    char path[4096];
    if (folder[0] && strikes("fsync", of_descriptor(fd, path))) return struck();
    return REAL(int, fsync, int)(fd);
}

int rename(const char *from, const char *to) {
    if (strikes("rename", to)) return struck();
    return REAL(int, rename, const char *, const char *)(from, to);
}

int renameat(int old, const char *from, int new, const char *to) {
    char path[4096];
    if (folder[0] && strikes("rename", at_folder(new, to, path))) return struck();
    return REAL(int, renameat, int, const char *, int, const char *)(old, from, new, to);
}

int renameat2(int old, const char *from, int new, const char *to, unsigned flags) {
    char path[4096];
    if (folder[0] && strikes("rename", at_folder(new, to, path))) return struck();
    return syscall(SYS_renameat2, old, from, new, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    if (strikes("mkdir", path)) return struck();
    return REAL(int, mkdir, const char *, mode_t)(path, mode);
}

int unlink(const char *path) {
    if (strikes("unlink", path)) return struck();
    return REAL(int, unlink, const char *)(path);
}

int unlinkat(int fd, const char *name, int flags) {
    char path[4096];
    if (folder[0] && strikes("unlink", at_folder(fd, name, path))) return struck();
    return REAL(int, unlinkat, int, const char *, int)(fd, name, flags);
}

int rmdir(const char *path) {
    if (strikes("rmdir", path)) return struck();
    return REAL(int, rmdir, const char *)(path);
}

static int opened(const char *name, int fd, const char *path, int flags, mode_t mode) {
    char whole[4096];
    if (flags & O_CREAT && folder[0] && strikes("open", at_folder(fd, path, whole)))
        return struck();
    return REAL(int, openat, int, const char *, int, mode_t)(fd, path, flags, mode);
}

#define MODE(flags, last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, last); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, flags) return opened("open", AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, flags) return opened("open", AT_FDCWD, path, flags, mode);
}
