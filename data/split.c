#include "data/split.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

struct cut { /* of one clip: source frames [first, end) of a file */
    const char *file;
    int64_t first, end, clip;
};

static int by_file_and_frame(const void *a, const void *b)
{
    const struct cut *x = a, *y = b;
    const int file = strcmp(x->file, y->file);
    if (file) return file;
    if (x->first != y->first) return x->first < y->first ? -1 : 1;
    return (x->clip > y->clip) - (x->clip < y->clip);
}

/* First frame of the held-out part of `frames`; the small number forgives 1 - 0.1 < 0.9. */
static int64_t held_from(int64_t frames, double share)
{
    return (int64_t)ceil((double)frames * (1 - share) - 1e-9);
}

/* Per clip: source frames from there on are held out; -1: it shares frames with no other clip. */
static int64_t *held_frames(const struct tables *t, double share)
{
    struct cut *cut = calloc((size_t)t->clips + 1, sizeof *cut);
    int64_t *held = calloc((size_t)t->clips + 1, sizeof *held);
    CHECK(cut && held, "out of memory");
    for (int64_t i = 0; i < t->clips; i++) {
        const char *sha = t->clip_sha[i];
        cut[i] = (struct cut){*sha ? sha : t->clip_path[i], t->clip_first[i], t->clip_end[i], i};
    }
    qsort(cut, (size_t)t->clips, sizeof *cut, by_file_and_frame);
    for (int64_t from = 0, to; from < t->clips; from = to) {
        int64_t end = cut[from].end;
        for (to = from + 1;
             to < t->clips && strcmp(cut[to].file, cut[from].file) == 0 && cut[to].first < end;
             to++)
            if (cut[to].end > end) end = cut[to].end;
        const int64_t first = cut[from].first;
        for (int64_t i = from; i < to; i++)
            held[cut[i].clip] = to - from > 1 ? first + held_from(end - first, share) : -1;
    }
    free(cut);
    return held;
}

void split_windows(const struct tables *t, double share, int64_t *train, int64_t *num_train,
                   int64_t *valid, int64_t *num_valid)
{
    int64_t *of_clip = held_frames(t, share);
    *num_train = *num_valid = 0;
    for (int64_t i = 0; i < t->n; i++) {
        const int64_t shared = of_clip[t->clip[i]];
        /* alone: by resampled frames; in a group: by source frames, the only common measure */
        const int64_t held = shared < 0 ? held_from(t->clip_frames[t->clip[i]], share) : shared;
        const int64_t first = shared < 0 ? t->start[i] : t->frame[i];
        const int64_t end = shared < 0 ? t->start[i] + t->frames : t->last[i] + 1;
        if (end <= held)
            train[(*num_train)++] = i;
        else if (first >= held)
            valid[(*num_valid)++] = i;
    }
    free(of_clip);
}
