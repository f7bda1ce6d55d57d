/* load: ask for URLs through a forward proxy, or straight, and say how fast the answers came.
 *
 *   load [-x HOST:PORT] [-c CONNECTIONS] [-n REQUESTS] [-o] [-d OBJECTS] URL
 *
 * -x  a proxy: CONNECT and TLS inside for https, absolute targets for http     -c  at a time, each in a thread (16)
 * -n  requests in all (1000)      -o  one request for each connection      -d  %d in URL runs from 0 to OBJECTS - 1
 *
 * One line of JSON: requests, errors, bytes, seconds, and in milliseconds the median, the 95th and the 99th
 * percentile, and the median of the first byte of a body. Certificates are not verified: this measures, tests verify.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, HEAD = 16 * 1024 };

static struct {
    const char *proxy, *url;
    char host[256], port[8], path[1024];
    int tls, once, connections, objects;
    long requests;
    struct addrinfo *address;
    SSL_CTX *context;
} job = {.connections = 16, .requests = 1000, .objects = 1};

static atomic_long next_request, errors, bytes;
static double *durations, *firsts;

typedef struct {
    int fd;
    SSL *tls;
    char *buffer;
    int start, end;
} peer;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int more(peer *p) {
    int count = p->tls ? SSL_read(p->tls, p->buffer, BUFFER) : (int)read(p->fd, p->buffer, BUFFER);
    p->start = 0;
    p->end = count > 0 ? count : 0;
    return count > 0;
}

static int say(peer *p, const char *text) {
    int length = (int)strlen(text);
    return (p->tls ? SSL_write(p->tls, text, length) : (int)write(p->fd, text, length)) == length;
}

static void hang_up(peer *p) {
    if (p->tls) SSL_free(p->tls);
    if (p->fd >= 0) close(p->fd);
    p->tls = NULL;
    p->fd = -1;
    p->start = p->end = 0;
}

/* The status of the head that comes next, which is left in `head`; 0 where none does. */
static int read_head(peer *p, char *head) {
    int length = 0;
    while (length < HEAD - 1) {
        if (p->start == p->end && !more(p)) return 0;
        head[length++] = p->buffer[p->start++];
        if (length >= 4 && memcmp(head + length - 4, "\r\n\r\n", 4) == 0) {
            head[length] = 0;
            return atoi(head + 9);
        }
    }
    return 0;
}

static long content_length(const char *head) {
    const char *field = strcasestr(head, "\r\ncontent-length:");
    return field ? atol(field + 17) : -1;
}

/* Reads a body of `length` bytes, or up to the end of the connection where that is -1; how many there were. */
static long read_body(peer *p, long length, double *first) {
    long got = p->end - p->start;
    if (got) *first = now();
    if (length >= 0 && got > length) {
        p->start += (int)length;
        return length;
    }
    p->start = p->end;
    while (length < 0 || got < length) {
        if (!more(p)) break;
        if (!got) *first = now();
        int count = p->end - p->start;
        if (length >= 0 && count > length - got) count = (int)(length - got);
        p->start += count;
        got += count;
    }
    return got;
}

static int establish(peer *p, char *head) {
    int one = 1;
    p->fd = socket(job.address->ai_family, SOCK_STREAM, 0);
    if (p->fd < 0 || connect(p->fd, job.address->ai_addr, job.address->ai_addrlen)) return 0;
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!job.tls) return 1;
    if (job.proxy) {
        char text[1024];
        snprintf(text, sizeof text, "CONNECT %s:%s HTTP/1.1\r\nHost: %s:%s\r\n\r\n", job.host, job.port, job.host, job.port);
        if (!say(p, text) || read_head(p, head) != 200) return 0;
    }
    p->tls = SSL_new(job.context);
    SSL_set_tlsext_host_name(p->tls, job.host);
    SSL_set_fd(p->tls, p->fd);
    return SSL_connect(p->tls) == 1;
}

static void *client(void *unused) {
    peer p = {.fd = -1, .buffer = malloc(BUFFER)};
    char *head = malloc(HEAD), path[1100], text[2400];
    (void)unused;
    for (;;) {
        long number = atomic_fetch_add(&next_request, 1);
        if (number >= job.requests) break;
        double began = now(), first = began;
        if (p.fd < 0 && !establish(&p, head)) {
            atomic_fetch_add(&errors, 1);
            hang_up(&p);
            continue;
        }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(path, sizeof path, job.path, (int)(number % job.objects));
#pragma GCC diagnostic pop
        if (job.proxy && !job.tls)
            snprintf(text, sizeof text, "GET http://%s:%s%s HTTP/1.1\r\nHost: %s:%s\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n",
                     job.host, job.port, path, job.host, job.port);
        else
            snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %s:%s\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n", path,
                     job.host, job.port);
        int status = say(&p, text) ? read_head(&p, head) : 0;
        long length = status ? content_length(head) : 0;
        long got = status ? read_body(&p, length, &first) : 0;
        if (status != 200 || (length >= 0 && got != length)) {
            atomic_fetch_add(&errors, 1);
            hang_up(&p);
        }
        atomic_fetch_add(&bytes, got);
        durations[number] = now() - began;
        firsts[number] = first - began;
        if (job.once || length < 0 || (status && strcasestr(head, "\r\nconnection: close"))) hang_up(&p);
    }
    hang_up(&p);
    free(head);
    free(p.buffer);
    return NULL;
}

static int ascending(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

static void parse_url(const char *url) {
    job.tls = strncmp(url, "https://", 8) == 0;
    const char *authority = strstr(url, "://") + 3, *path = strchr(authority, '/');
    const char *colon = memchr(authority, ':', path - authority);
    snprintf(job.host, sizeof job.host, "%.*s", (int)((colon ? colon : path) - authority), authority);
    snprintf(job.port, sizeof job.port, "%.*s", colon ? (int)(path - colon - 1) : 3, colon ? colon + 1 : job.tls ? "443" : "80");
    snprintf(job.path, sizeof job.path, "%s", path);
}

int main(int count, char **arguments) {
    int option;
    while ((option = getopt(count, arguments, "x:c:n:d:o")) != -1) {
        if (option == 'x') job.proxy = optarg;
        else if (option == 'c') job.connections = atoi(optarg);
        else if (option == 'n') job.requests = atol(optarg);
        else if (option == 'd') job.objects = atoi(optarg);
        else if (option == 'o') job.once = 1;
        else return 2;
    }
    if (optind != count - 1 || !strstr(arguments[optind], "://")) return 2;
    signal(SIGPIPE, SIG_IGN);
    parse_url(arguments[optind]);
    char host[256], *port = job.port;
    snprintf(host, sizeof host, "%s", job.proxy ? job.proxy : job.host);
    if (job.proxy && (port = strrchr(host, ':'))) *port++ = 0;
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM};
    if (getaddrinfo(host, port, &wanted, &job.address)) return 1;
    job.context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(job.context, SSL_MODE_RELEASE_BUFFERS);
    durations = calloc(job.requests, sizeof *durations);
    firsts = calloc(job.requests, sizeof *firsts);
    pthread_t *threads = calloc(job.connections, sizeof *threads);
    double began = now();
    for (int i = 0; i < job.connections; i++) pthread_create(&threads[i], NULL, client, NULL);
    for (int i = 0; i < job.connections; i++) pthread_join(threads[i], NULL);
    double seconds = now() - began;
    qsort(durations, job.requests, sizeof *durations, ascending);
    qsort(firsts, job.requests, sizeof *firsts, ascending);
    printf("{\"requests\": %ld, \"errors\": %ld, \"bytes\": %ld, \"seconds\": %.6f, \"p50\": %.3f, \"p95\": %.3f, \"p99\": %.3f, \"first\": %.3f}\n",
           job.requests, errors, bytes, seconds, 1000 * durations[job.requests / 2],
           1000 * durations[(long)(job.requests * 0.95)], 1000 * durations[(long)(job.requests * 0.99)],
           1000 * firsts[job.requests / 2]);
    return 0;
}
