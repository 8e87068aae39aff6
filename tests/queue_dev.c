#include "tests/queue_dev.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/dev.h"
#include "tests/fake_queue.h"

struct task {
    void (*f)(void *arg);
    void *arg;
    struct task *next;
};
struct queue {
    struct fake_queue face; /* first: what the library sees */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct task *first, **last;
    bool ends, in_order; /* in_order: it has waited for the device since its last work */
    unsigned delay;
};
struct event {
    atomic_int recorded, came;
    bool of_device; /* of the device's own queue, whose work is done on return */
};

static void late(struct queue *q)
{
    q->delay = q->delay * 1103515245u + 12345u;
    nanosleep(&(struct timespec){.tv_nsec = (q->delay >> 16) % 100 * 1000}, NULL);
}

static void *serve(void *arg)
{
    struct queue *q = arg;
    for (;;) {
        pthread_mutex_lock(&q->lock);
        while (!q->first && !q->ends) pthread_cond_wait(&q->more, &q->lock);
        struct task *t = q->first;
        if (t && !(q->first = t->next)) q->last = &q->first;
        pthread_mutex_unlock(&q->lock);
        if (!t) return NULL;
        late(q);
        t->f(t->arg);
        free(t);
    }
}

static void push(struct queue *q, void (*f)(void *), void *arg)
{
    struct task *t = calloc(1, sizeof *t);
    CHECK(t, "out of memory");
    *t = (struct task){f, arg, NULL};
    pthread_mutex_lock(&q->lock);
    *q->last = t;
    q->last = &t->next;
    pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&q->lock);
}

static void run(struct fake_queue *face, void (*f)(void *), void *arg)
{
    struct queue *q = (struct queue *)face;
    CHECK(q->in_order, "work was queued that did not wait for the device's own");
    q->in_order = false;
    push(q, f, arg);
}

static void *queue_open(struct dev *d)
{
    (void)d;
    struct queue *q = calloc(1, sizeof *q);
    CHECK(q, "out of memory");
    q->face.run = run;
    q->last = &q->first;
    q->delay = (unsigned)getpid();
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->more, NULL);
    CHECK(pthread_create(&q->thread, NULL, serve, q) == 0, "no thread for a queue");
    return q;
}

static void queue_close(struct dev *d, void *queue)
{
    (void)d;
    struct queue *q = queue;
    pthread_mutex_lock(&q->lock);
    q->ends = true;
    pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&q->lock);
    pthread_join(q->thread, NULL);
    pthread_cond_destroy(&q->more);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static void *event_new(struct dev *d)
{
    (void)d;
    struct event *e = calloc(1, sizeof *e);
    CHECK(e, "out of memory");
    return e;
}

static void event_drop(struct dev *d, void *event)
{
    (void)d;
    free(event);
}

static void event_comes(void *arg) { atomic_fetch_add(&((struct event *)arg)->came, 1); }

static void event_record(struct dev *d, void *event, void *queue)
{
    (void)d;
    struct event *e = event;
    e->recorded++;
    e->of_device = !queue;
    if (queue)
        push(queue, event_comes, e);
    else
        e->came++;
}

static bool event_came(struct dev *d, void *event)
{
    (void)d;
    struct event *e = event;
    return e->came == e->recorded;
}

static void event_await(struct dev *d, void *queue, void *event)
{
    const struct event *e = event;
    CHECK(queue && e->of_device, "the tests know only queues that wait for the device");
    CHECK(event_came(d, event), "the device's own work is done on return");
    ((struct queue *)queue)->in_order = true;
}

static const struct dev_queues queues = {queue_open,   queue_close, event_new, event_drop,
                                         event_record, event_await, event_came};

static struct dev_ops table[2]; /* of f64 and f32 */

static const struct dev_ops *ops(enum dtype compute)
{
    return compute == DT_F64 ? &table[0] : compute == DT_F32 ? &table[1] : NULL;
}

static struct dev_backend backend = {.name = QUEUE_DEV, .ops = ops, .queues = &queues};

void queue_dev_register(void)
{
    table[0] = *dev_ref.ops(DT_F64);
    table[1] = *dev_ref.ops(DT_F32);
    table[0].name = table[1].name = QUEUE_DEV;
    backend.start = dev_ref.start;
    backend.stop = dev_ref.stop;
    dev_register(&backend);
    char path[4096] = "";
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
    CHECK(n > 0, "where is this program?");
    strcpy(strrchr(path, '/'), "/fake_nccl.so");
    setenv("OSP_NCCL", path, 1);
}

void *queue_dev_nccl(const char *symbol)
{
    void *so = dlopen(getenv("OSP_NCCL"), RTLD_NOW | RTLD_LOCAL),
         *f = so ? dlsym(so, symbol) : NULL;
    CHECK(f, "the fake NCCL has no %s: %s", symbol, dlerror());
    return f;
}
