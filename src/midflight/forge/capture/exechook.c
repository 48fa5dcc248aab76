/*
 * Leads programs that are run by their full path (CC=/usr/bin/gcc in a Makefile) to the shims of capture.
 *
 * Preloaded into the processes of a build, and only when the PATH alone did not do. The build script appends the table
 * of tools: their names, what these names resolve to, and the shim to run instead. Nothing else is changed. Children of
 * vfork() run this code in the memory of their parents: it allocates nothing and keeps no state.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct tool {
    const char *name, *real, *shim;
};
extern const struct tool tools[] __attribute__((visibility("hidden")));

extern char **environ;

static const char *shim_of(const char *path)
{
    const char *name = path ? strrchr(path, '/') : NULL;
    char real[PATH_MAX];
    int saved = errno;

    if (!name || strncmp(path, "//", 2) == 0) /* the wrapper's own way to the real tool */
        return path;
    for (const struct tool *tool = tools; tool->name; tool++) {
        if (strcmp(name + 1, tool->name) != 0 || strcmp(path, tool->shim) == 0)
            continue;
        if (realpath(path, real) && strcmp(real, tool->real) == 0)
            path = tool->shim;
        break;
    }
    errno = saved;
    return path;
}

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

int execve(const char *path, char *const argv[], char *const envp[])
{
    int (*real)(const char *, char *const[], char *const[]) = next("execve");
    return real(shim_of(path), argv, envp);
}

int execv(const char *path, char *const argv[])
{
    return execve(path, argv, environ);
}

int execvpe(const char *file, char *const argv[], char *const envp[])
{
    int (*real)(const char *, char *const[], char *const[]) = next("execvpe");
    return real(shim_of(file), argv, envp);
}

int execvp(const char *file, char *const argv[])
{
    return execvpe(file, argv, environ);
}

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr,
                char *const argv[], char *const envp[])
{
    int (*real)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
                char *const[]) = next("posix_spawn");
    return real(pid, shim_of(path), actions, attr, argv, envp);
}

int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr,
                 char *const argv[], char *const envp[])
{
    int (*real)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],
                char *const[]) = next("posix_spawnp");
    return real(pid, shim_of(file), actions, attr, argv, envp);
}

/* The variable argument forms, up to a number that no shell line of a compiler reaches through them. */
#define COLLECT(first)                                                                                                 \
    char *argv[1024];                                                                                                  \
    size_t count = 0;                                                                                                  \
    va_list list;                                                                                                      \
    va_start(list, first);                                                                                             \
    argv[count++] = (char *)first;                                                                                     \
    while (argv[count - 1] && count < 1024)                                                                            \
        argv[count++] = va_arg(list, char *);                                                                          \
    va_end(list);                                                                                                      \
    if (argv[count - 1]) {                                                                                             \
        errno = E2BIG;                                                                                                 \
        return -1;                                                                                                     \
    }

int execl(const char *path, const char *arg, ...)
{
    COLLECT(arg)
    return execve(path, argv, environ);
}

int execlp(const char *file, const char *arg, ...)
{
    COLLECT(arg)
    return execvpe(file, argv, environ);
}
