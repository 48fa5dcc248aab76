/* The frame of a host program for a library: for every line on standard input one verdict on standard output, for ever.
 * The process and its mapping of the library stay the same from the first line to the last. */
#ifndef MIDFLIGHT_CORPUS_HOST_H
#define MIDFLIGHT_CORPUS_HOST_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* "VULNERABLE", "FIXED", or what else was seen. */
static const char *verdict(void);

enum child_end { CHILD_RETURNED, CHILD_LOOPED, CHILD_DIED };

/* Run `work` in a forked child, as a server that forks for each request would; the child has the code of this process,
 * patched or not. A child that uses `milliseconds` of processor time (not of the clock: the machine may be busy) loops. */
static inline enum child_end in_child(void (*work)(void), int milliseconds)
{
	int status = 0;
	pid_t child;

	fflush(NULL);
	child = fork();
	if (child == 0) {
		struct rlimit no_core = { 0, 0 };
		struct itimerval limit = { { 0, 0 }, { milliseconds / 1000, milliseconds % 1000 * 1000 } };

		setrlimit(RLIMIT_CORE, &no_core);
		setitimer(ITIMER_VIRTUAL, &limit, NULL);
		work();
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		return CHILD_DIED;
	if (WIFSIGNALED(status))
		return WTERMSIG(status) == SIGVTALRM ? CHILD_LOOPED : CHILD_DIED;
	return WEXITSTATUS(status) == 0 ? CHILD_RETURNED : CHILD_DIED;
}

int main(void)
{
	char line[64];

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin) != NULL)
		puts(verdict());
	return 0;
}

#endif
