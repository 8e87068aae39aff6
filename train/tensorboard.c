#include "train/tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/fault.h"
#include "core/io.h"

enum wire { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
/* field numbers of the messages (tensorflow/core/util/event.proto, summary.proto) */
enum { EVENT_WALL = 1, EVENT_STEP = 2, EVENT_VERSION = 3, EVENT_SUMMARY = 5, EVENT_SESSION = 7 };
enum { VALUE_TAG = 1, VALUE_SIMPLE = 2, VALUE_IMAGE = 4, VALUE_TENSOR = 8, VALUE_METADATA = 9 };
enum { SESSION_START = 1, TENSOR_STRING = 7, COLOUR_RGB = 3 };
enum { NAMES_TRIED = 100 };

struct tensorboard {
    int fd;
    char *path;
};

/* Protobuf messages are built in a growing buffer, from the inside out. */
struct bytes {
    uint8_t *p;
    size_t n, cap;
};

static void add(struct bytes *b, const void *p, size_t n)
{
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n) + 64;
        b->p = realloc(b->p, b->cap);
        CHECK(b->p, "out of memory");
    }
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void add_little(struct bytes *b, uint64_t v, int n)
{
    uint8_t x[8];
    for (int i = 0; i < n; i++) x[i] = (uint8_t)(v >> (8 * i));
    add(b, x, (size_t)n);
}

static void add_varint(struct bytes *b, uint64_t v)
{
    uint8_t x[10];
    int n = 0;
    for (; v >= 0x80; v >>= 7) x[n++] = (uint8_t)(v | 0x80);
    x[n++] = (uint8_t)v;
    add(b, x, (size_t)n);
}

static void add_key(struct bytes *b, unsigned field, enum wire w) { add_varint(b, field << 3 | w); }

static void add_int(struct bytes *b, unsigned field, int64_t v)
{
    add_key(b, field, WIRE_VARINT);
    add_varint(b, (uint64_t)v);
}

static void add_blob(struct bytes *b, unsigned field, const void *p, size_t n)
{
    add_key(b, field, WIRE_BYTES);
    add_varint(b, n);
    add(b, p, n);
}

static void add_string(struct bytes *b, unsigned field, const char *s)
{
    add_blob(b, field, s, strlen(s));
}

/* inner becomes a field of b and is freed. */
static void add_message(struct bytes *b, unsigned field, struct bytes *inner)
{
    add_blob(b, field, inner->p ? (const void *)inner->p : "", inner->n);
    free(inner->p);
    *inner = (struct bytes){0};
}

static void add_float(struct bytes *b, unsigned field, double v)
{
    const float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    add_key(b, field, WIRE_FIXED32);
    add_little(b, u, 4);
}

static struct bytes event_at(double wall)
{
    struct bytes b = {0};
    uint64_t u;
    memcpy(&u, &wall, sizeof u);
    add_key(&b, EVENT_WALL, WIRE_FIXED64);
    add_little(&b, u, 8);
    return b;
}

static uint32_t masked(const void *p, size_t n)
{
    const uint32_t c = io_crc32c(0, p, n);
    return (c >> 15 | c << 17) + 0xA282EAD8u;
}

static void put_record(struct tensorboard *t, struct bytes *event, struct err *e)
{
    struct bytes r = {0};
    add_little(&r, event->n, 8);
    add_little(&r, masked(r.p, 8), 4);
    add(&r, event->p, event->n);
    add_little(&r, masked(event->p, event->n), 4);
    ssize_t w = -1;
    errno = ENOSPC;
    const bool fault = fault_hit("tensorboard");
    while (!fault && (w = write(t->fd, r.p, r.n)) < 0 && errno == EINTR) {
    }
    if (w != (ssize_t)r.n)
        err_set(e, RC_IO, "%s: cannot write: %s", t->path, strerror(w < 0 ? errno : ENOSPC));
    free(r.p);
    free(event->p);
}

static void put_start(struct tensorboard *t, double wall, int64_t purge_step, struct err *e)
{
    struct bytes b = event_at(wall);
    add_string(&b, EVENT_VERSION, "brain.Event:2");
    put_record(t, &b, e);
    if (purge_step < 0 || e->code) return;
    struct bytes log = {0};
    b = event_at(wall);
    add_int(&b, EVENT_STEP, purge_step);
    add_int(&log, 1, SESSION_START);
    add_message(&b, EVENT_SESSION, &log);
    put_record(t, &b, e);
}

struct tensorboard *tensorboard_open(const char *dir, double wall, int64_t purge_step,
                                     struct err *e)
{
    io_mkdir(dir, e);
    if (e->code) return NULL;
    struct tensorboard *t = calloc(1, sizeof *t);
    CHECK(t, "out of memory");
    char host[256] = "";
    if (gethostname(host, sizeof host - 1) != 0) strcpy(host, "localhost");
    for (int i = 0; i < NAMES_TRIED; i++) { /* two starts within a second are two files */
        free(t->path);
        t->path = io_path("%s/events.out.tfevents.%010lld.%s.%ld.%d", dir, (long long)wall, host,
                          (long)getpid(), i);
        t->fd = open(t->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (t->fd >= 0 || errno != EEXIST) break;
    }
    if (t->fd < 0)
        err_set(e, RC_CANTCREAT, "%s: cannot create: %s", t->path, strerror(errno));
    else
        put_start(t, wall, purge_step, e);
    if (!e->code) return t;
    tensorboard_close(t);
    return NULL;
}

void tensorboard_scalars(struct tensorboard *t, double wall, int64_t step, const char *const *tag,
                         const double *value, int n, struct err *e)
{
    if (n == 0) return;
    struct bytes b = event_at(wall), summary = {0};
    add_int(&b, EVENT_STEP, step);
    for (int i = 0; i < n; i++) {
        struct bytes v = {0};
        add_string(&v, VALUE_TAG, tag[i]);
        add_float(&v, VALUE_SIMPLE, value[i]);
        add_message(&summary, 1, &v);
    }
    add_message(&b, EVENT_SUMMARY, &summary);
    put_record(t, &b, e);
}

/* One value that is not a scalar, as an event. */
static void put_value(struct tensorboard *t, double wall, int64_t step, struct bytes *value,
                      struct err *e)
{
    struct bytes b = event_at(wall), summary = {0};
    add_int(&b, EVENT_STEP, step);
    add_message(&summary, 1, value);
    add_message(&b, EVENT_SUMMARY, &summary);
    put_record(t, &b, e);
}

void tensorboard_text(struct tensorboard *t, double wall, int64_t step, const char *tag,
                      const char *text, struct err *e)
{
    struct bytes v = {0}, tensor = {0}, shape = {0}, dim = {0}, meta = {0}, plugin = {0};
    add_int(&dim, 1, 1);
    add_message(&shape, 2, &dim);
    add_int(&tensor, 1, TENSOR_STRING);
    add_message(&tensor, 2, &shape);
    add_string(&tensor, 8, text);
    add_string(&plugin, 1, "text");
    add_message(&meta, 1, &plugin);
    add_string(&v, VALUE_TAG, tag);
    add_message(&v, VALUE_TENSOR, &tensor);
    add_message(&v, VALUE_METADATA, &meta);
    put_value(t, wall, step, &v, e);
}

void tensorboard_image(struct tensorboard *t, double wall, int64_t step, const char *tag,
                       int64_t height, int64_t width, const void *png, size_t bytes, struct err *e)
{
    struct bytes v = {0}, image = {0};
    add_int(&image, 1, height);
    add_int(&image, 2, width);
    add_int(&image, 3, COLOUR_RGB);
    add_blob(&image, 4, png, bytes);
    add_string(&v, VALUE_TAG, tag);
    add_message(&v, VALUE_IMAGE, &image);
    put_value(t, wall, step, &v, e);
}

const char *tensorboard_path(const struct tensorboard *t) { return t->path; }

void tensorboard_close(struct tensorboard *t)
{
    if (!t) return;
    if (t->fd >= 0) close(t->fd); /* nothing is buffered: every write has already been checked */
    free(t->path);
    free(t);
}
