#include "rl/prompt_file.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/rng.h"
#include "parallel/comm.h"
#include "rl/reward.h"
#include "rl/reward_wire.h"

static bool line_fine(const char *line, size_t n, struct err *e, const char *where)
{
    size_t at = 0;
    if (n > REWARD_PROMPT)
        err_set(e, RC_DATA, "%s: a prompt of %zu bytes; at most %d are possible", where, n,
                REWARD_PROMPT);
    else if (!wire_printable(line, n, &at))
        err_set(e, RC_DATA, "%s: byte %zu of the prompt is a control character or no UTF-8", where,
                at + 1);
    else if (memmem(line, n, "<|", 2) && memmem(line, n, "|>", 2))
        err_set(e, RC_DATA, "%s: <|...|> would be read as a token of the scorer", where);
    return !e->code;
}

static void add(struct prompts *p, const char *line, size_t n, int number)
{
    p->text = realloc(p->text, (size_t)(p->n + 1) * sizeof *p->text);
    p->line = realloc(p->line, (size_t)(p->n + 1) * sizeof *p->line);
    CHECK(p->text && p->line, "out of memory");
    p->line[p->n] = number;
    p->text[p->n++] = strndup(line, n);
}

void prompt_file_read(struct prompts *p, const char *key, const char *path, struct err *e)
{
    *p = (struct prompts){0};
    size_t size;
    if (!io_exists(path)) {
        err_set(e, RC_NOINPUT, "%s: %s: no such file", key, path);
        return;
    }
    char *text = io_read_file(path, &size, e);
    if (!text) {
        const struct err why = *e;
        err_set(e, why.code, "%s: %s", key, why.msg);
        return;
    }
    const char *at = text, *end = text + size;
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) at += 3; /* byte order mark */
    for (int line = 1; at < end && !e->code; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at)), *next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        while (at < stop && isspace((unsigned char)*at)) at++;
        while (stop > at && isspace((unsigned char)stop[-1])) stop--;
        char where[512];
        snprintf(where, sizeof where, "%s: %s:%d", key, path, line);
        if (stop > at && line_fine(at, (size_t)(stop - at), e, where))
            add(p, at, (size_t)(stop - at), line);
        at = next;
    }
    free(text);
    if (!e->code && !p->n) err_set(e, RC_DATA, "%s: %s holds no prompt", key, path);
}

uint64_t prompt_file_hash(const struct prompts *p)
{
    uint64_t h = 0;
    for (int i = 0; i < p->n; i++) h = h * 1099511628211u + rng_hash(p->text[i]);
    return h >> 1; /* JSON integers are signed */
}

struct read_by { /* what one rank has read */
    uint64_t hash;
    int64_t n;
};

static bool differ(const struct read_by *a, const struct read_by *b)
{
    return a->hash != b->hash || a->n != b->n;
}

bool prompt_file_same(struct comm *world, const struct prompts *p, const char *key,
                      const char *path, struct err *e)
{
    const struct read_by mine = {prompt_file_hash(p), p->n};
    struct read_by *all = calloc((size_t)world->size, sizeof *all);
    char ranks[256] = "";
    size_t n = 0;
    int other = 0;
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, &mine, sizeof mine, "prompts");
    for (int r = 1; r < world->size; r++) {
        if (!differ(&all[r], &all[0])) continue;
        if (!other) other = r;
        if (n < sizeof ranks)
            n += (size_t)snprintf(ranks + n, sizeof ranks - n, "%s%d", n ? ", " : "", r);
    }
    if (other)
        err_set(e, RC_CONFIG,
                "%s: %s: %lld prompts on rank 0, other ones on rank %s (rank %d: %lld); all ranks "
                "need the same file",
                key, path, (long long)all[0].n, ranks, other, (long long)all[other].n);
    free(all);
    return !other;
}
