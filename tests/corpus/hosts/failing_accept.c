/* Stands between a server and the C library: accept4 fails once, as if the client had gone away meanwhile, when the file
 * that the environment names is there; that file is removed by it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict length, int flags)
{
	int (*real)(int, struct sockaddr *restrict, socklen_t *restrict, int) = dlsym(RTLD_NEXT, "accept4");

	if (unlink(getenv("FAILING_ACCEPT")) == 0) {
		errno = ECONNABORTED;
		return -1;
	}
	return real(fd, address, length, flags);
}
