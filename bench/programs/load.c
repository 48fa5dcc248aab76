/* Sends prepared HTTP requests to a port of this machine at a fixed rate, each on a connection of its own, and measures each
   from the moment it was due (not from when it could be sent: a server that stalls must not make the load wait for it).

   usage: load PORT FILE RATE COUNT [tls]; FILE has, for each request, its length (4 bytes, native) and its bytes. With tls
   each connection makes a whole handshake, and takes any certificate.
   Prints one JSON object. Gives a request up after 20 s. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8192, HEAD = 1024 };
struct request { const char *data; uint32_t size, sent, got; double due; int fd, ready; SSL *tls; char head[HEAD]; };

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static int by_value(const void *a, const void *b) { double x = *(const double *)a, y = *(const double *)b; return (x > y) - (x < y); }
static double *good, *away; static size_t goods, aways, others, failed; static double wait_sum, wait_min = 1e9, wait_max;
static int epoll, open_now;
static SSL_CTX *context; /* or none: plain */

static void end(struct request *r, int ok) {
    epoll_ctl(epoll, EPOLL_CTL_DEL, r->fd, 0);
    if (r->tls) SSL_free(r->tls), r->tls = 0;
    close(r->fd);
    r->fd = -1;
    open_now--;
    double took = now() - r->due;
    int status = 0;
    r->head[r->got < HEAD ? r->got : HEAD - 1] = 0;
    if (!ok || sscanf(r->head, "HTTP/1.1 %d", &status) != 1) { failed++; return; }
    if (status == 200) good[goods++] = took;
    else if (status == 503) {
        away[aways++] = took;
        char *after = strcasestr(r->head, "retry-after: ");
        double wait = after ? atof(after + 13) : 0;
        wait_sum += wait;
        if (wait < wait_min) wait_min = wait;
        if (wait > wait_max) wait_max = wait;
    } else { others++; if (others == 1) fprintf(stderr, "%s\n", r->head); }
}

static void start(struct request *r, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    r->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (r->fd < 0) { perror("socket"); exit(1); }
    setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    open_now++;
    if (connect(r->fd, (void *)&to, sizeof to) < 0 && errno != EINPROGRESS) { failed++; close(r->fd); r->fd = -1; open_now--; return; }
    if (context) {
        r->tls = SSL_new(context);
        SSL_set_fd(r->tls, r->fd);
        SSL_set_connect_state(r->tls);
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = r};
    epoll_ctl(epoll, EPOLL_CTL_ADD, r->fd, &event);
}

static void wait_for(struct request *r, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = r};
    epoll_ctl(epoll, EPOLL_CTL_MOD, r->fd, &event);
}

/* What came of a call to TLS: bytes, 0 at the end, -1 for wait (what is waited for is set), -2 for a fault. */
static ssize_t tls_result(struct request *r, int n) {
    if (n > 0) return n;
    switch (SSL_get_error(r->tls, n)) {
    case SSL_ERROR_WANT_READ: wait_for(r, EPOLLIN); return -1;
    case SSL_ERROR_WANT_WRITE: wait_for(r, EPOLLOUT); return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    default: return -2;
    }
}

static ssize_t put(struct request *r) {
    if (r->tls) return tls_result(r, SSL_write(r->tls, r->data + r->sent, r->size - r->sent));
    ssize_t n = send(r->fd, r->data + r->sent, r->size - r->sent, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN ? -1 : -2;
}

static ssize_t get(struct request *r, char *buffer, size_t size) {
    if (r->tls) return tls_result(r, SSL_read(r->tls, buffer, size));
    ssize_t n = recv(r->fd, buffer, size, 0);
    return n >= 0 ? n : errno == EAGAIN ? -1 : -2;
}

static void go_on(struct request *r) {
    if (r->tls && !r->ready) {
        ssize_t n = tls_result(r, SSL_do_handshake(r->tls));
        if (n == -1) return;
        if (n <= 0) { end(r, 0); return; }
        r->ready = 1;
    }
    while (r->sent < r->size) {
        ssize_t n = put(r);
        if (n == -1) return;
        if (n < 0) { end(r, 0); return; }
        r->sent += n;
        if (r->sent == r->size) wait_for(r, EPOLLIN | EPOLLRDHUP);
    }
    for (;;) {
        char rest[4096];
        int keep = r->got < HEAD - 1;
        ssize_t n = keep ? get(r, r->head + r->got, HEAD - 1 - r->got) : get(r, rest, sizeof rest);
        if (n > 0) { if (keep) r->got += n; continue; }
        if (n == 0) end(r, 1);
        else if (n != -1) end(r, r->got > 12);
        return;
    }
}

static double at(double *values, size_t count, double share) { return count ? values[(size_t)((count - 1) * share)] * 1e3 : 0; }

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) { fprintf(stderr, "usage: load PORT FILE RATE COUNT [tls]\n"); return 2; }
    if (argc == 6) {
        context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    }
    int port = atoi(argv[1]), file = open(argv[2], O_RDONLY);
    double rate = atof(argv[3]);
    size_t count = strtoul(argv[4], 0, 10), next = 0;
    struct stat info;
    if (file < 0 || fstat(file, &info)) { perror(argv[2]); return 1; }
    char *data = malloc(info.st_size), *place = data;
    for (off_t got = 0, n; got < info.st_size; got += n) if ((n = read(file, data + got, info.st_size - got)) <= 0) return 1;
    struct request *all = calloc(count, sizeof *all);
    good = calloc(count, sizeof *good), away = calloc(count, sizeof *away);
    for (size_t i = 0; i < count; i++) {
        if (place >= data + info.st_size) { count = i; break; }
        memcpy(&all[i].size, place, 4);
        all[i].data = place + 4, all[i].fd = -1;
        place += 4 + all[i].size;
    }
    epoll = epoll_create1(0);
    double begin = now(), last_look = begin;
    while (next < count || open_now) {
        double time = now();
        while (next < count && open_now < MOST && begin + next / rate <= time) {
            all[next].due = begin + next / rate;
            start(&all[next++], port);
        }
        struct epoll_event events[256];
        int n = epoll_wait(epoll, events, 256, 1);
        for (int i = 0; i < n; i++) go_on(events[i].data.ptr);
        if (now() - last_look > 1) {
            last_look = now();
            for (size_t i = 0; i < next; i++) if (all[i].fd >= 0 && last_look - all[i].due > 20) end(&all[i], 0);
        }
    }
    double seconds = now() - begin;
    qsort(good, goods, sizeof *good, by_value);
    qsort(away, aways, sizeof *away, by_value);
    printf("{\"seconds\": %.3f, \"ok\": %zu, \"away\": %zu, \"other\": %zu, \"failed\": %zu, \"p50_ms\": %.3f, \"p90_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"max_ms\": %.3f, \"away_p99_ms\": %.3f, \"retry_min_s\": %.0f, \"retry_mean_s\": %.1f, \"retry_max_s\": %.0f}\n",
           seconds, goods, aways, others, failed, at(good, goods, .5), at(good, goods, .9), at(good, goods, .99), at(good, goods, 1),
           at(away, aways, .99), aways ? wait_min : 0, aways ? wait_sum / aways : 0, wait_max);
    return 0;
}
