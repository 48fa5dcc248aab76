/* CVE-2026-34502: a line of a memcached server that does not end as lines do is taken as one. */
#include "host.h"

#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <apr_general.h>
#include <apr_memcache.h>

/* A server on the loopback interface that sends `answer` on whatever it is asked, once; returns its port. */
static int serve(const char *answer, pid_t *server)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	int listening = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listening, (struct sockaddr *)&address, length) != 0 || listen(listening, 4) != 0 ||
	    getsockname(listening, (struct sockaddr *)&address, &length) != 0)
		return -1;
	fflush(NULL);
	*server = fork();
	if (*server == 0) {
		char question[256];
		int connection;

		alarm(20);
		while ((connection = accept(listening, NULL, NULL)) >= 0) {
			if (read(connection, question, sizeof question) > 0 &&
			    write(connection, answer, strlen(answer)) < 0)
				_exit(1);
			close(connection);
		}
		_exit(0);
	}
	close(listening);
	return ntohs(address.sin_port);
}

/* Whether the library takes that answer for the version of the server. */
static int accepts(const char *answer)
{
	apr_pool_t *pool;
	apr_memcache_server_t *server;
	pid_t child = -1;
	char *version = NULL;
	int port = serve(answer, &child), accepted;

	apr_pool_create(&pool, NULL);
	accepted = port > 0 &&
		   apr_memcache_server_create(pool, "127.0.0.1", (apr_port_t)port, 0, 1, 1, 600, &server) == APR_SUCCESS &&
		   apr_memcache_version(server, pool, &version) == APR_SUCCESS && version != NULL;
	apr_pool_destroy(pool);
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	return accepted;
}

static const char *verdict(void)
{
	static int initialised;

	if (!initialised++)
		apr_initialize();
	if (!accepts("VERSION 1.6\r\n"))
		return "ODD: a good answer is not taken";
	return accepts("VERSION 1.6\n") ? "VULNERABLE" : "FIXED";
}
