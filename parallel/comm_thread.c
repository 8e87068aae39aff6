/* Ranks as threads of one process: for tests and sanitizers. Every collective is: publish what I
 * have, meet, read what the others have, meet again. Works on devices with host memory. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "parallel/comm.h"
#include "parallel/reduce.h"

struct slot {
    struct tensor src;
    const struct run *send;
    int num_send, color, key;
    struct group *made;
};
struct group {
    pthread_mutex_t lock;
    pthread_cond_t all_here;
    int size, waiting, users;
    unsigned long turn;
    bool broken;
    struct group *root; /* breaking one breaks all that share the root */
    struct slot slot[];
};

static struct group *group_new(int size, struct group *root)
{
    struct group *g = calloc(1, sizeof *g + (size_t)size * sizeof(struct slot));
    CHECK(g, "out of memory");
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->all_here, NULL);
    g->size = g->users = size;
    g->root = root ? root : g;
    return g;
}

static bool is_broken(struct group *root)
{
    pthread_mutex_lock(&root->lock);
    const bool b = root->broken;
    pthread_mutex_unlock(&root->lock);
    return b;
}

static void meet(struct comm *c)
{
    struct group *g = c->impl;
    pthread_mutex_lock(&g->lock);
    const unsigned long turn = g->turn;
    if (++g->waiting == g->size) {
        g->waiting = 0;
        g->turn++;
        pthread_cond_broadcast(&g->all_here);
    }
    while (g->turn == turn) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 50000000;
        if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&g->all_here, &g->lock, &t);
        if (g->turn != turn) break;
        if (g != g->root) pthread_mutex_unlock(&g->lock);
        const bool gone = g == g->root ? g->broken : is_broken(g->root);
        if (g != g->root) pthread_mutex_lock(&g->lock);
        if (gone) {
            pthread_mutex_unlock(&g->lock);
            err_stop(RC_HANG, "another rank stopped");
        }
    }
    pthread_mutex_unlock(&g->lock);
}

static struct slot *mine(struct comm *c) { return &((struct group *)c->impl)->slot[c->rank]; }
static struct slot *of(struct comm *c, int r) { return &((struct group *)c->impl)->slot[r]; }

static void all_gather(struct comm *c, struct tensor dst, struct tensor src, struct work *w)
{
    (void)w;
    mine(c)->src = src;
    meet(c);
    const size_t n = tensor_bytes(src);
    for (int r = 0; r < c->size; r++) {
        char *to = (char *)dst.data + (size_t)r * n;
        if (to != of(c, r)->src.data && n) memcpy(to, of(c, r)->src.data, n);
    }
    meet(c);
}

static void sum_into(struct comm *c, struct tensor dst, int64_t first, bool add)
{
    const void **parts = malloc((size_t)c->size * sizeof *parts);
    CHECK(parts, "out of memory");
    for (int r = 0; r < c->size; r++)
        parts[r] = (const char *)of(c, r)->src.data + (size_t)first * dtype_size(dst.dtype);
    reduce_parts(dst, parts, c->size, add);
    free(parts);
}

static void reduce_scatter(struct comm *c, struct tensor dst, struct tensor src, struct work *w)
{
    (void)w;
    mine(c)->src = src;
    meet(c);
    sum_into(c, dst, c->rank * tensor_count(dst), true);
    meet(c);
}

static void all_reduce(struct comm *c, struct tensor x, struct work *w)
{
    (void)w;
    mine(c)->src = x;
    meet(c);
    struct tensor sum = x;
    sum.data = malloc(tensor_bytes(x) + 1);
    CHECK(sum.data, "out of memory");
    sum_into(c, sum, 0, false);
    meet(c);
    if (tensor_count(x)) memcpy(x.data, sum.data, tensor_bytes(x));
    free(sum.data);
}

static void exchange(struct comm *c, struct tensor dst, const struct run *recv, int num_recv,
                     struct tensor src, const struct run *send, int num_send, struct work *w)
{
    (void)w;
    struct slot *s = mine(c);
    s->src = src;
    s->send = send;
    s->num_send = num_send;
    meet(c);
    const size_t row = (size_t)tensor_width(src) * dtype_size(src.dtype);
    for (int peer = 0; peer < c->size; peer++) {
        const struct slot *p = of(c, peer);
        int next = 0;
        for (int i = 0; i < num_recv; i++) {
            if (recv[i].peer != peer) continue;
            while (next < p->num_send && p->send[next].peer != c->rank) next++;
            CHECK(next < p->num_send && p->send[next].rows == recv[i].rows,
                  "exchange: run %d expects %lld rows of rank %d that it does not send", i,
                  (long long)recv[i].rows, peer);
            memcpy((char *)dst.data + (size_t)recv[i].row * row,
                   (const char *)p->src.data + (size_t)p->send[next].row * row,
                   (size_t)recv[i].rows * row);
            next++;
        }
    }
    meet(c);
}

static void broadcast(struct comm *c, struct tensor x, int root, struct work *w)
{
    (void)w;
    mine(c)->src = x;
    meet(c);
    if (c->rank != root) memcpy(x.data, of(c, root)->src.data, tensor_bytes(x));
    meet(c);
}

static void wait_done(struct comm *c, struct work *w)
{
    (void)c;
    (void)w;
}

static struct comm *make(struct group *g, int rank, const char *name);

static struct comm *split(struct comm *c, int color, int key, const char *name)
{
    struct slot *s = mine(c);
    s->color = color;
    s->key = key;
    meet(c);
    int size = 0, rank = 0, leader = -1;
    for (int r = 0; r < c->size; r++) {
        const struct slot *o = of(c, r);
        if (o->color != color) continue;
        size++;
        if (leader < 0) leader = r;
        if (o->key < key || (o->key == key && r < c->rank)) rank++;
    }
    if (leader == c->rank) s->made = group_new(size, ((struct group *)c->impl)->root);
    meet(c);
    struct group *g = of(c, leader)->made;
    meet(c);
    return make(g, rank, name);
}

static void free_comm(struct comm *c)
{
    struct group *g = c->impl;
    pthread_mutex_lock(&g->lock);
    const bool last = --g->users == 0;
    pthread_mutex_unlock(&g->lock);
    if (last) {
        pthread_cond_destroy(&g->all_here);
        pthread_mutex_destroy(&g->lock);
        free(g);
    }
    free(c);
}

static const struct comm_ops ops = {"threads", all_gather, reduce_scatter, all_reduce, exchange,
                                    broadcast, wait_done,  NULL,           split,      free_comm};

static struct comm *make(struct group *g, int rank, const char *name)
{
    struct comm *c = calloc(1, sizeof *c);
    CHECK(c, "out of memory");
    c->name = name;
    c->rank = rank;
    c->size = g->size;
    c->ops = &ops;
    c->impl = g;
    return c;
}

void comm_thread_break(struct comm *world)
{
    if (world->ops != &ops) return;
    struct group *root = ((struct group *)world->impl)->root;
    pthread_mutex_lock(&root->lock);
    root->broken = true;
    pthread_cond_broadcast(&root->all_here);
    pthread_mutex_unlock(&root->lock);
}

struct start {
    struct group *g;
    int rank;
    void (*f)(struct comm *, void *);
    void *arg;
    struct err err;
};

static void *rank_main(void *arg)
{
    struct start *s = arg;
    struct comm *world = make(s->g, s->rank, "world");
    err_identify(s->rank, s->g->size, NULL);
    log_identify(s->rank, s->g->size);
    struct err_trap *trap = calloc(1, sizeof *trap);
    CHECK(trap, "out of memory");
    if (setjmp(trap->jump) == 0) {
        err_set_trap(trap);
        s->f(world, s->arg);
        err_set_trap(NULL);
        comm_free(world);
    } else {
        s->err = trap->err;
        comm_thread_break(world);
    }
    free(trap);
    return NULL;
}

void comm_thread_run(int n, void (*f)(struct comm *world, void *arg), void *arg)
{
    if (n == 1) {
        struct comm *world = comm_self(NULL);
        f(world, arg);
        comm_free(world);
        return;
    }
    struct group *g = group_new(n, NULL);
    struct start *s = calloc((size_t)n, sizeof *s);
    pthread_t *t = calloc((size_t)n, sizeof *t);
    CHECK(s && t, "out of memory");
    for (int r = 0; r < n; r++) {
        s[r] = (struct start){.g = g, .rank = r, .f = f, .arg = arg};
        CHECK(pthread_create(&t[r], NULL, rank_main, &s[r]) == 0, "cannot start rank %d", r);
    }
    for (int r = 0; r < n; r++) pthread_join(t[r], NULL);
    struct err first = {0};
    for (int r = 0; r < n; r++)
        if (s[r].err.code && (!first.code || first.code == RC_HANG)) first = s[r].err;
    free(t);
    free(s);
    if (first.code) err_stop(first.code, "%s", first.msg);
}
