#include "parallel/peers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <linux/errqueue.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"

enum { MAX_ADDRESSES = 8, ASK = 1, REPORTED = 2 };
static const uint32_t MAGIC = 0x3150534f;

struct place { /* where a rank can be reached */
    char host[48];
    uint64_t net; /* equal: the same network stack, the loopback works */
    uint16_t port;
    int num;
    struct in_addr addr[MAX_ADDRESSES];
};
struct packet {
    uint32_t magic, flags;
    uint64_t key;
    int32_t from, to;
    struct peer_state state;
};
struct peers {
    struct comm *const *axis;
    int fd, size, rank;
    uint64_t key;
    struct place *place;
    struct sockaddr_in *good; /* the address that answered last; port 0: none yet */
    struct peer *peer;
    double reported;
};

/* The network stack this process sees: of this host, in this namespace. */
static uint64_t network_id(const char *host)
{
    char text[256], boot[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f && !fgets(boot, sizeof boot, f)) boot[0] = 0;
    if (f) fclose(f);
    struct stat st = {0};
    if (stat("/proc/self/ns/net", &st) != 0) st.st_ino = 0;
    snprintf(text, sizeof text, "%s %s %llu", host, boot, (unsigned long long)st.st_ino);
    return rng_hash(text);
}

static void own_addresses(struct place *p)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0) return;
    for (const struct ifaddrs *i = all; i && p->num < MAX_ADDRESSES; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
        if (!(i->ifa_flags & IFF_UP) || (i->ifa_flags & IFF_LOOPBACK)) continue;
        memcpy(&p->addr[p->num++],
               &((const struct sockaddr_in *)(const void *)i->ifa_addr)->sin_addr,
               sizeof(struct in_addr));
    }
    freeifaddrs(all);
}

static int open_socket(uint16_t *port)
{
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in any = {.sin_family = AF_INET};
    socklen_t len = sizeof any;
    if (fd < 0 || bind(fd, (struct sockaddr *)&any, len) != 0 ||
        getsockname(fd, (struct sockaddr *)&any, &len) != 0) {
        if (fd >= 0) close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on); /* closed ports are told */
    *port = ntohs(any.sin_port);
    return fd;
}

struct peers *peers_open(struct comm *world, struct comm *const *axis)
{
    struct peers *p = calloc(1, sizeof *p);
    CHECK(p, "out of memory");
    struct place mine = {0};
    gethostname(mine.host, sizeof mine.host - 1);
    mine.net = network_id(mine.host);
    *p = (struct peers){.axis = axis, .size = world->size, .rank = world->rank};
    p->fd = open_socket(&mine.port);
    if (p->fd < 0) log_warn("no UDP socket: a report of a hang cannot say who is missing");
    own_addresses(&mine);
    p->place = calloc((size_t)p->size, sizeof *p->place);
    p->peer = calloc((size_t)p->size, sizeof *p->peer);
    p->good = calloc((size_t)p->size, sizeof *p->good);
    CHECK(p->place && p->peer && p->good, "out of memory");
    comm_gather_bytes(world, p->place, &mine, sizeof mine, "addresses");
    if (getrandom(&p->key, sizeof p->key, 0) != (ssize_t)sizeof p->key) p->key = (uint64_t)getpid();
    comm_broadcast_bytes(world, &p->key, sizeof p->key, 0, "key");
    return p;
}

void peers_close(struct peers *p)
{
    if (!p) return;
    if (p->fd >= 0) close(p->fd);
    free(p->place);
    free(p->peer);
    free(p->good);
    free(p);
}

int peers_fd(const struct peers *p) { return p->fd; }
const struct peer *peers_of(const struct peers *p, int rank) { return &p->peer[rank]; }
const char *peers_host(const struct peers *p, int rank) { return p->place[rank].host; }

static void copy_text(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text ? text : "");
}

/* The comms' owner writes while this reads: what is told may be a moment old, which is all it
 * claims to be. */
static void own_state(const struct peers *p, struct peer_state *s)
{
    copy_text(s->host, sizeof s->host, p->place[p->rank].host);
    const struct comm *world = p->axis[AXIS_WORLD];
    copy_text(s->context, sizeof s->context, world ? world->context : NULL);
    for (int a = 0; a < AXIS_COUNT; a++) {
        const struct comm *c = p->axis[a];
        if (!c) continue;
        struct peer_axis *x = &s->axis[a];
        x->seq = c->seq;
        copy_text(x->tag, sizeof x->tag, c->tag);
        const char *doing = c->doing;
        if (!doing) continue;
        x->waits_for = c->doing_seq;
        x->waited = (float)(log_seconds() - c->since);
        x->kind = c->kind;
        copy_text(x->waiting, sizeof x->waiting, doing);
    }
}

static void send_to(struct peers *p, int rank, const struct sockaddr_in *to, uint32_t flags)
{
    struct packet k = {.magic = MAGIC, .flags = flags, .key = p->key, .from = p->rank, .to = rank};
    own_state(p, &k.state);
    /* a full buffer or no route: it is asked again; a report of an earlier error takes this call */
    if (sendto(p->fd, &k, sizeof k, 0, (const struct sockaddr *)to, sizeof *to) < 0)
        (void)sendto(p->fd, &k, sizeof k, 0, (const struct sockaddr *)to, sizeof *to);
}

/* To the address that answered before, or to all that the rank has. */
static void send_packet(struct peers *p, int rank, uint32_t flags)
{
    if (p->fd < 0 || rank == p->rank) return;
    if (p->good[rank].sin_port) {
        send_to(p, rank, &p->good[rank], flags);
        return;
    }
    const struct place *to = &p->place[rank];
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(to->port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (to->net == p->place[p->rank].net) send_to(p, rank, &a, flags);
    for (int i = 0; to->net != p->place[p->rank].net && i < to->num; i++) {
        a.sin_addr = to->addr[i];
        send_to(p, rank, &a, flags);
    }
}

void peers_ask(struct peers *p, int rank) { send_packet(p, rank, ASK); }

void peers_tell_reported(struct peers *p)
{
    for (int r = 0; r < p->size; r++) send_packet(p, r, REPORTED);
}

double peers_reported(const struct peers *p) { return p->reported; }

static void take(struct peers *p, const struct packet *k, const struct sockaddr_in *from)
{
    if (k->magic != MAGIC || k->key != p->key || k->to != p->rank) return;
    if (k->from < 0 || k->from >= p->size || k->from == p->rank) return;
    struct peer *r = &p->peer[k->from];
    r->state = k->state;
    r->state.host[sizeof r->state.host - 1] = r->state.context[sizeof r->state.context - 1] = 0;
    for (int a = 0; a < AXIS_COUNT; a++) {
        struct peer_axis *x = &r->state.axis[a];
        x->tag[sizeof x->tag - 1] = x->waiting[sizeof x->waiting - 1] = 0;
    }
    r->last_heard = log_seconds();
    r->refused = 0;
    if ((k->flags & REPORTED) && p->reported <= 0) p->reported = r->last_heard;
    p->good[k->from] = *from;
    if (k->flags & ASK) send_to(p, k->from, from, 0);
}

/* A closed port counts only at an address that has answered before: other hosts may have networks
 * with the same numbers. */
static void take_errors(struct peers *p)
{
    for (;;) {
        char control[512];
        struct sockaddr_in to = {0};
        struct msghdr m = {.msg_name = &to,
                           .msg_namelen = sizeof to,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
        if (recvmsg(p->fd, &m, MSG_ERRQUEUE) < 0) return;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            struct sock_extended_err e;
            if (c->cmsg_level != IPPROTO_IP || c->cmsg_type != IP_RECVERR) continue;
            memcpy(&e, CMSG_DATA(c), sizeof e);
            if (e.ee_errno != ECONNREFUSED) continue;
            for (int r = 0; r < p->size; r++)
                if (p->good[r].sin_port == to.sin_port &&
                    p->good[r].sin_addr.s_addr == to.sin_addr.s_addr && !p->peer[r].refused++)
                    p->peer[r].first_refused = log_seconds();
        }
    }
}

void peers_answer(struct peers *p)
{
    if (p->fd < 0) return;
    take_errors(p);
    for (;;) {
        struct packet k;
        struct sockaddr_in from = {0};
        socklen_t len = sizeof from;
        const ssize_t n = recvfrom(p->fd, &k, sizeof k, 0, (struct sockaddr *)&from, &len);
        if (n == (ssize_t)sizeof k)
            take(p, &k, &from);
        else if (n < 0 && errno != ECONNREFUSED && errno != EINTR)
            break;
    }
    take_errors(p);
}
