/* One target per mode. It prints "ready", works until the shared page (a file named by argv[2]) says stop, and then
 * prints what it saw itself: calls made, EINTR seen, damage found. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <fcntl.h>
#include <unistd.h>

static volatile struct shared { int stop; int go; long count; long seen; } *shared;
static long calls, interrupted, bad;
static char *mode;

static void ready(void) { printf("ready %p %p\n", (void *)0, (void *)0); fflush(stdout); }

static int once(void) {
    static int fd = -1, peer[2], word;
    struct timespec wait = {0, 30000000};
    struct timeval receive = {0, 30000};
    char buffer[8];
    if (fd < 0) {
        if (!strncmp(mode, "epoll", 5)) fd = epoll_create1(0);
        else if (!strcmp(mode, "semtimedop")) fd = semget(IPC_PRIVATE, 1, 0600);
        else if (!strcmp(mode, "accept")) {
            struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
            fd = socket(AF_INET, SOCK_STREAM, 0);
            if (bind(fd, (void *)&any, sizeof any) || listen(fd, 1)) exit(9);
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive);
        } else {
            socketpair(AF_UNIX, SOCK_STREAM, 0, peer);
            fd = peer[0];
            if (strcmp(mode, "read")) setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &receive, sizeof receive);
        }
    }
    if (!strcmp(mode, "nanosleep")) return nanosleep(&wait, 0);
    if (!strcmp(mode, "poll")) { struct pollfd p = {fd, POLLIN, 0}; return poll(&p, 1, 30); }
    if (!strcmp(mode, "ppoll")) { struct pollfd p = {fd, POLLIN, 0}; sigset_t s; sigemptyset(&s); return ppoll(&p, 1, &wait, &s); }
    if (!strcmp(mode, "select")) { fd_set s; FD_ZERO(&s); FD_SET(fd, &s); return select(fd + 1, &s, 0, 0, &receive); }
    if (!strcmp(mode, "epoll_wait")) { struct epoll_event e; return epoll_wait(fd, &e, 1, 30); }
    if (!strcmp(mode, "epoll_pwait")) { struct epoll_event e; sigset_t s; sigfillset(&s); return epoll_pwait(fd, &e, 1, 30, &s); }
    if (!strcmp(mode, "futex")) return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &wait);
    if (!strcmp(mode, "semtimedop")) { struct sembuf b = {0, -1, 0}; return semtimedop(fd, &b, 1, &wait); }
    if (!strcmp(mode, "sigtimedwait")) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR1); return sigtimedwait(&s, 0, &wait); }
    if (!strcmp(mode, "accept")) return accept(fd, 0, 0);
    if (!strcmp(mode, "recv")) return recv(fd, buffer, 8, 0);
    if (!strcmp(mode, "read")) return read(0, buffer, 1); /* blocks for good: the test writes */
    exit(8);
}

static void calling(void) {
    ready();
    while (!shared->stop) {
        if (once() < 0 && errno == EINTR) interrupted++;
        calls++;
        shared->count = calls;
    }
    printf("eintr=%ld\n", interrupted);
}

static int pause_us = 200;
static void *counting(void *unused) {
    (void)unused;
    while (!shared->stop) { __atomic_add_fetch(&shared->count, 1, __ATOMIC_RELAXED); usleep(pause_us); }
    return 0;
}

static void threads(int n) {
    if (n > 16) pause_us = n * 20;
    pthread_t t[1024];
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 64 << 10);
    for (int i = 1; i < n; i++) if (pthread_create(&t[i], &a, counting, 0)) exit(7);
    ready();
    counting(0);
    for (int i = 1; i < n; i++) pthread_join(t[i], 0);
    printf("fine\n");
}

static void *brief(void *unused) { (void)unused; __atomic_add_fetch(&shared->count, 1, __ATOMIC_RELAXED); return 0; }
static void *spawning(void *unused) {
    (void)unused;
    while (!shared->stop) { pthread_t t; if (pthread_create(&t, 0, brief, 0)) bad++; else pthread_join(t, 0); }
    return 0;
}
static void birth(void) {
    pthread_t t[3];
    for (int i = 0; i < 3; i++) pthread_create(&t[i], 0, spawning, 0);
    ready();
    for (int i = 0; i < 3; i++) pthread_join(t[i], 0);
    printf("bad=%ld\n", bad);
}
static void orphaned(void) { /* the main thread leaves, another lives on */
    pthread_t t;
    pthread_create(&t, 0, spawning, 0);
    ready();
    pthread_exit(0);
}

static volatile long received, order;
static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number; (void)context;
    if (info->si_value.sival_int != order) bad++;
    order = info->si_value.sival_int + 1;
    shared->seen = ++received;
}
static void storm(void) { /* a child sends numbered realtime signals as fast as the queue takes them */
    struct sigaction a = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN, &a, 0);
    pid_t self = getpid();
    if (!fork()) {
        long n = 0;
        while (!shared->stop) {
            union sigval v = {.sival_int = n};
            if (!sigqueue(self, SIGRTMIN, v)) n++;
            else usleep(50);
            if (n - shared->seen > 200) usleep(200);
        }
        shared->count = n;
        _exit(0);
    }
    ready();
    volatile long spin = 0;
    while (!shared->stop) spin++;
    while (waitpid(-1, 0, 0) > 0 || errno == EINTR) ;
    printf("lost=%ld bad=%ld many=%d\n", shared->count - received, bad, received > 1000);
}

static void on_fault(int number) { (void)number; }

#define REPEAT16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define REPEAT32(X) REPEAT16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define LOADZ(n) "vmovdqu64 64*" #n "(%rdi), %zmm" #n "\n"
#define STOREZ(n) "vmovdqu64 %zmm" #n ", 64*" #n "(%rsi)\n"
#define LOADY(n) "vmovdqu 64*" #n "(%rdi), %ymm" #n "\n"
#define STOREY(n) "vmovdqu %ymm" #n ", 64*" #n "(%rsi)\n"
#define ONESZ(n) "vpternlogd $255, %zmm" #n ", %zmm" #n ", %zmm" #n "\n"
#define ONESY(n) "vpcmpeqd %ymm" #n ", %ymm" #n ", %ymm" #n "\n"
void hold_zmm(void *in, void *out);
void hold_ymm(void *in, void *out);
void hold_red_zone(long *bad);
long clobber_zmm(long, long, long, long, long, long);
long clobber_ymm(long, long, long, long, long, long);
#define SUM "lea (%rdi,%rsi), %rax\nadd %rdx, %rax\nadd %rcx, %rax\nadd %r8, %rax\nadd %r9, %rax\n" \
            "mov %rsp, %rdx\nadd $8, %rdx\nand $15, %rdx\nadd %rdx, %rax\n" /* a misaligned stack spoils the sum */
__asm__(".text\n"
    "hold_zmm:\n" REPEAT32(LOADZ) "kmovw %edi, %k1\nmov $200000, %ecx\n1: dec %ecx\njnz 1b\n" REPEAT32(STOREZ)
    "kmovw %k1, %eax\ncmp %ax, %di\nje 2f\nmovq $0, (%rsi)\n2: vzeroupper\nret\n"
    "hold_ymm:\n" REPEAT16(LOADY) "mov $200000, %ecx\n1: dec %ecx\njnz 1b\n" REPEAT16(STOREY) "vzeroupper\nret\n"
    "hold_red_zone:\n"
    "mov $16, %ecx\nmov %rsp, %rdx\n1: sub $8, %rdx\nmov %rdx, (%rdx)\ndec %ecx\njnz 1b\n"
    "mov $200000, %ecx\n2: dec %ecx\njnz 2b\n"
    "mov $16, %ecx\nmov %rsp, %rdx\n3: sub $8, %rdx\ncmp %rdx, (%rdx)\nje 4f\nincq (%rdi)\n4: dec %ecx\njnz 3b\nret\n"
    "clobber_zmm:\n" SUM REPEAT32(ONESZ) "kxnorw %k1, %k1, %k1\nret\n"
    "clobber_ymm:\n" SUM REPEAT16(ONESY) "ret\n");

static void vectors(void) {
    static unsigned char in[2048], out[2048];
    int wide = __builtin_cpu_supports("avx512f");
    for (int i = 0; i < 2048; i++) in[i] = (unsigned char)(i * 37 + i / 64 + 1);
    printf("ready %p\n", wide ? (void *)clobber_zmm : (void *)clobber_ymm);
    fflush(stdout);
    while (!shared->stop) {
        memset(out, 0, sizeof out);
        (wide ? hold_zmm : hold_ymm)(in, out);
        for (int i = 0; i < (wide ? 2048 : 1024); i++) if ((wide || i % 64 < 32) && in[i] != out[i]) bad++;
        hold_red_zone(&bad);
        shared->count = ++calls;
    }
    printf("bad=%ld\n", bad);
}

static void confined(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {6, filter};
    ready();
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) exit(6);
    shared->go = 1;
    while (!shared->stop) { usleep(1000); shared->count++; }
    write(1, "fine\n", 5);
    _exit(0);
}

static void strict(void) {
    ready();
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) exit(6);
    shared->go = 1;
    while (!shared->stop) shared->count++;
    write(1, "fine\n", 5);
    syscall(SYS_exit, 0);
}

static void unwritable_code(void) {
    if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0)) exit(6);
    ready();
    while (!shared->stop) usleep(1000);
    printf("fine\n");
}

static void forks(void) {
    ready();
    while (!shared->stop) {
        int status;
        pid_t child = fork();
        if (!child) _exit(5);
        if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 5) bad++;
        shared->count++;
    }
    printf("bad=%ld\n", bad);
}

static void spawn_and_wait(void) {
    ready();
    while (!shared->go) usleep(1000);
    if (!vfork()) { while (!shared->stop) ; _exit(0); }
    printf("fine\n");
}

static char alternate[65536];
static void in_handler(int number) {
    volatile char mark[] = "marker-in-handler";
    (void)number;
    shared->go = 1;
    while (!shared->stop) usleep(1000);
    if (mark[0] != 'm') bad++;
}
static void alternate_stack(void) {
    volatile char mark[] = "marker-interrupted";
    stack_t s = {.ss_sp = alternate, .ss_size = sizeof alternate};
    struct sigaction a = {.sa_handler = in_handler, .sa_flags = SA_ONSTACK};
    sigaltstack(&s, 0);
    sigaction(SIGUSR1, &a, 0);
    ready();
    raise(SIGUSR1);
    sigaltstack(0, &s);
    if (mark[0] != 'm' || s.ss_sp != alternate || s.ss_flags) bad++;
    printf("bad=%ld\n", bad);
}

/* Blocked in pause() until the signal comes: an EINTR swallowed here, or a signal lost, hangs it. */
static void pausing(void) {
    signal(SIGUSR1, on_fault);
    ready();
    while (!shared->stop) { if (pause() == -1 && errno == EINTR) shared->count++; }
    printf("fine\n");
}

static __attribute__((noinline)) void inner(void) { for (volatile int i = 0; i < 3000; i++) shared->go = i; }
static __attribute__((noinline)) void outer(void) { inner(); shared->count++; }
static void busy(void) {
    printf("ready %p %p\n", (void *)inner, (void *)outer);
    fflush(stdout);
    while (!shared->stop) outer();
    printf("fine\n");
}

static long slow(long milliseconds) { usleep(milliseconds * 1000); shared->seen++; return 7; }
static void slowly(void) {
    printf("ready %p\n", (void *)slow);
    fflush(stdout);
    while (!shared->stop) { if (usleep(3000)) bad++; shared->count++; }
    printf("bad=%ld\n", bad);
}

int main(int argc, char **argv) {
    int fd = open(argv[2], O_RDWR);
    mode = argv[1];
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED) return 3;
    if (!strcmp(mode, "exec")) {
        if (!argv[3]) ready();
        usleep(500);
        if (shared->stop) { printf("fine\n"); return 0; }
        shared->count++;
        execl("/proc/self/exe", argv[0], mode, argv[2], "again", (char *)0);
        return 4;
    }
    if (!strcmp(mode, "threads")) threads(atoi(argv[3]));
    else if (!strcmp(mode, "birth")) birth();
    else if (!strcmp(mode, "orphaned")) orphaned();
    else if (!strcmp(mode, "storm")) storm();
    else if (!strcmp(mode, "vectors")) vectors();
    else if (!strcmp(mode, "confined")) confined();
    else if (!strcmp(mode, "strict")) strict();
    else if (!strcmp(mode, "mdwe")) unwritable_code();
    else if (!strcmp(mode, "forks")) forks();
    else if (!strcmp(mode, "vfork")) spawn_and_wait();
    else if (!strcmp(mode, "altstack")) alternate_stack();
    else if (!strcmp(mode, "pausing")) pausing();
    else if (!strcmp(mode, "busy")) busy();
    else if (!strcmp(mode, "slowly")) slowly();
    else calling();
    return 0;
}
