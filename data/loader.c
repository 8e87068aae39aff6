#include "data/loader.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "core/fault.h"
#include "core/log.h"
#include "core/rng.h"

enum { BUFFERS = 2 };

struct loader {
    struct dataset *d;
    struct loader_opts o;
    struct batch buffer[BUFFERS];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t filled, taken; /* batches read by the thread, and handed out */
    uint64_t next;          /* sample number the thread reads next */
    bool stop, failed;
    struct err err;
    double waited;
};

int64_t loader_sample(const struct dataset *d, uint64_t seed, bool shuffle, uint64_t g)
{
    const uint64_t n = (uint64_t)d->num_train;
    const struct rng_key key = {.seed = seed, .use = RNG_SHUFFLE, .item = g / n};
    return d->train[shuffle ? rng_permute(key, g % n, n) : g % n];
}

/* The caption of sample number g: -1 when it is dropped. */
static int64_t choose_caption(const struct loader *l, uint64_t g, int64_t index)
{
    const struct rng_stream s =
        rng_open((struct rng_key){.seed = l->o.seed, .use = RNG_CAPTION, .item = g});
    if (rng_uniform_at(s, 1) < l->o.text_drop_ratio) return -1;
    const int64_t n = dataset_captions_of(l->d, index);
    const int64_t which = (int64_t)(rng_uniform_at(s, 0) * (double)n);
    return dataset_caption_of(l->d, index, which < n ? which : n - 1);
}

static bool fill(struct loader *l, struct batch *b, struct err *e)
{
    const struct dataset *d = l->d;
    const int64_t values = d->c * d->t * d->h * d->w, text = l->o.text_len * d->text_dim;
    fault_hit("data");
    for (int i = 0; i < b->n && !e->code; i++, l->next += (uint64_t)l->o.dp_size) {
        const uint64_t g = l->next;
        b->sample[i] = g;
        b->index[i] = loader_sample(d, l->o.seed, l->o.shuffle, g);
        dataset_latent(l->d, b->index[i], b->latent + i * values, e);
        if (!e->code)
            dataset_text(l->d, choose_caption(l, g, b->index[i]), l->o.text_len, b->text + i * text,
                         e);
    }
    return e->code == 0;
}

/* Keeps one batch ahead of the one in use. */
static void *read_ahead(void *arg)
{
    struct loader *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->stop && !l->failed) {
        /* the batch handed out last stays untouched until the next call */
        if (l->filled >= l->taken + (l->taken ? BUFFERS - 1 : BUFFERS)) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        struct batch *b = &l->buffer[l->filled % BUFFERS];
        pthread_mutex_unlock(&l->lock);
        struct err e = {0};
        const bool ok = fill(l, b, &e);
        pthread_mutex_lock(&l->lock);
        if (ok) {
            l->filled++;
        } else {
            l->failed = true;
            l->err = e;
        }
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void check_opts(const struct dataset *d, const struct loader_opts *o)
{
    CHECK(o->dp_size > 0 && o->dp_rank >= 0 && o->dp_rank < o->dp_size && o->batch_size > 0 &&
              o->text_len > 0,
          "loader of data rank %d of %d", o->dp_rank, o->dp_size);
    const int64_t step = o->dp_size * o->batch_size;
    if (o->global_batch < 1 || o->global_batch % step)
        err_stop(RC_CONFIG,
                 "data_config.global_batch_size %lld is not a multiple of data ranks x batch_size "
                 "= %d x %lld",
                 (long long)o->global_batch, o->dp_size, (long long)o->batch_size);
    if (d->num_train == 0)
        err_stop(RC_DATA,
                 "%s: none of the %lld samples is for training: the clips are too short for this "
                 "validation.window, or windows overlap its border",
                 d->path, (long long)d->n);
}

struct loader *loader_open(struct dataset *d, struct loader_opts o, uint64_t cursor)
{
    check_opts(d, &o);
    struct loader *l = calloc(1, sizeof *l);
    CHECK(l, "out of memory");
    l->d = d;
    l->o = o;
    l->next = cursor + (uint64_t)o.dp_rank;
    const size_t n = (size_t)o.batch_size;
    for (int i = 0; i < BUFFERS; i++) {
        struct batch *b = &l->buffer[i];
        b->n = (int)o.batch_size;
        b->sample = calloc(n, sizeof *b->sample);
        b->index = calloc(n, sizeof *b->index);
        b->latent = calloc(n, (size_t)(d->c * d->t * d->h * d->w) * sizeof *b->latent);
        b->text = calloc(n, (size_t)(o.text_len * d->text_dim) * sizeof *b->text);
        CHECK(b->sample && b->index && b->latent && b->text, "out of memory");
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    CHECK(pthread_create(&l->thread, NULL, read_ahead, l) == 0, "no thread for the loader");
    return l;
}

void loader_close(struct loader *l)
{
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->changed);
    for (int i = 0; i < BUFFERS; i++) {
        free(l->buffer[i].sample);
        free(l->buffer[i].index);
        free(l->buffer[i].latent);
        free(l->buffer[i].text);
    }
    free(l);
}

/* Waits for the thread, a second at a time. */
static void wait_filled(struct loader *l, double t0)
{
    while (l->filled == l->taken && !l->failed) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec++;
        pthread_cond_timedwait(&l->changed, &l->lock, &t);
        const double waited = log_seconds() - t0;
        if (l->filled > l->taken || l->failed || !l->o.give_up || !l->o.give_up(waited)) continue;
        pthread_mutex_unlock(&l->lock);
        err_stop(RC_TEMP,
                 "the data did not come for %.0f s and this job was asked to stop; run again to go "
                 "on from the last checkpoint",
                 waited);
    }
}

const struct batch *loader_next(struct loader *l)
{
    const double t0 = log_seconds();
    pthread_mutex_lock(&l->lock);
    wait_filled(l, t0);
    l->waited += log_seconds() - t0;
    if (l->filled == l->taken) {
        const struct err e = l->err;
        pthread_mutex_unlock(&l->lock);
        err_raise(&e);
    }
    const struct batch *b = &l->buffer[l->taken++ % BUFFERS];
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    return b;
}

double loader_wait_seconds(const struct loader *l) { return l->waited; }
