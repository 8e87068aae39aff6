#include "rl/advantage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/err.h"

/* Values this close to each other, in units of what they were summed from, are equal: rounding must
 * not become an advantage. */
static const double SAME = 1e-14;
static const double MOST = 1e100; /* no score: its square still is a number */
enum { REWARD = -1 };             /* as a column; 0.. are the scores */

struct row {
    int64_t key, group, at; /* groups of one key are judged together; at: in the table */
};
struct ranked {
    double value;
    int64_t at;
};
struct job {
    const struct adv_config *c;
    const struct adv_member *m;
    struct adv_out *out;
    int64_t n;
    struct row *row; /* sorted */
    double *scratch;
    struct ranked *ranked;
    double global_std[ADV_DIMS];
};
struct moments {
    int64_t n;
    double mean, std, min, max;
    bool flat; /* all are equal; std is 0 */
};

static int by_key(const void *x, const void *y)
{
    const struct row *a = x, *b = y;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    if (a->group != b->group) return a->group < b->group ? -1 : 1;
    return (a->at > b->at) - (a->at < b->at);
}

static int by_value(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static int by_rank(const void *x, const void *y)
{
    const struct ranked *a = x, *b = y;
    if (a->value != b->value) return a->value < b->value ? -1 : 1;
    return (a->at > b->at) - (a->at < b->at);
}

static void check(const struct adv_config *c, int64_t n)
{
    double sum = 0, most = 0;
    CHECK(n >= 0 && c->dims >= 1 && c->dims <= ADV_DIMS, "%lld members, %d scores", (long long)n,
          c->dims);
    for (int k = 0; k < c->dims; k++) {
        CHECK(isfinite(c->weight[k]), "weight %d is %g", k, c->weight[k]);
        sum += c->weight[k];
        most = fmax(most, fabs(c->weight[k]));
    }
    CHECK(most > 0, "all weights of scores are 0");
    CHECK(c->aggregate == ADV_OF_REWARD || (c->aggregate == ADV_OF_ADVANTAGES && sum > 0),
          "weights that sum to %g", sum);
    CHECK(c->scale >= ADV_GROUP_STD && c->scale <= ADV_NO_STD, "scale %d", c->scale);
    CHECK((c->ddof == 0 || c->ddof == 1) && c->eps >= 0 && c->clip_max > 0,
          "ddof %lld, eps %g, clip_max %g", (long long)c->ddof, c->eps, c->clip_max);
    CHECK(c->min_group >= 0 && c->best_of >= 0 && c->best_of % 2 == 0,
          "min_group %lld, best_of %lld (even)", (long long)c->min_group, (long long)c->best_of);
}

static bool counts(const struct job *j, int64_t at) { return !isnan(j->out[at].reward); }

static void set_reward(const struct adv_config *c, const struct adv_member *m, struct adv_out *o)
{
    double sum = 0, size = 0;
    *o = (struct adv_out){.reward = NAN};
    if (!m->valid) return;
    for (int k = 0; k < c->dims; k++) {
        if (!(fabs(m->score[k]) <= MOST)) return;
        sum += c->weight[k] * m->score[k];
        size += fabs(c->weight[k] * m->score[k]);
    }
    if (size <= MOST) o->reward = sum;
}

/* Value of a column, and the size of what it was summed from. */
static double value(const struct job *j, int64_t at, int column, double *size)
{
    const double *score = j->m[at].score;
    if (column != REWARD) {
        *size = fabs(score[column]);
        return score[column];
    }
    *size = 0;
    for (int k = 0; k < j->c->dims; k++) *size += fabs(j->c->weight[k] * score[k]);
    return j->out[at].reward;
}

/* Over the valid members of rows [from, to). Summed in the order of the values, so that the order
 * of the table leaves no trace. */
static struct moments moments(struct job *j, int64_t from, int64_t to, int column, int64_t ddof)
{
    struct moments s = {0};
    double *v = j->scratch, most = 0;
    for (int64_t i = from; i < to; i++) {
        double size;
        if (!counts(j, j->row[i].at)) continue;
        v[s.n++] = value(j, j->row[i].at, column, &size);
        most = fmax(most, size);
    }
    if (s.n == 0) return (struct moments){.flat = true};
    qsort(v, (size_t)s.n, sizeof *v, by_value);
    s.min = v[0];
    s.max = v[s.n - 1];
    s.flat = s.max - s.min <= SAME * most;
    for (int64_t i = 0; i < s.n; i++) s.mean += v[i] / (double)s.n;
    if (s.flat) return s;
    double var = 0;
    for (int64_t i = 0; i < s.n; i++) var += (v[i] - s.mean) * (v[i] - s.mean);
    s.std = sqrt(var / (double)(s.n - ddof));
    return s;
}

/* Adds weight * advantage of one column; false: there is none, all values are equal. */
static bool add_column(struct job *j, int64_t from, int64_t to, int column, double weight)
{
    const struct adv_config *c = j->c;
    const struct moments s = moments(j, from, to, column, c->ddof);
    if (s.flat) return false;
    const double scale = c->scale == ADV_NO_STD       ? 1
                         : c->scale == ADV_GLOBAL_STD ? j->global_std[column < 0 ? 0 : column]
                                                      : s.std;
    const double by = c->scale == ADV_NO_STD ? 1 : scale + c->eps;
    for (int64_t i = from; i < to && by > 0; i++) {
        const int64_t at = j->row[i].at;
        double size;
        if (counts(j, at))
            j->out[at].advantage += weight * (value(j, at, column, &size) - s.mean) / by;
    }
    return true;
}

static double weight_sum(const struct adv_config *c)
{
    double sum = 0;
    for (int k = 0; k < c->dims; k++) sum += c->weight[k];
    return sum;
}

/* Only the n/2 best and worst keep their advantage. */
static void select_best(struct job *j, int64_t from, int64_t to)
{
    int64_t n = 0;
    for (int64_t i = from; i < to; i++) {
        const int64_t at = j->row[i].at;
        if (counts(j, at)) j->ranked[n++] = (struct ranked){j->out[at].advantage, at};
    }
    qsort(j->ranked, (size_t)n, sizeof *j->ranked, by_rank);
    for (int64_t i = j->c->best_of / 2; i < n - j->c->best_of / 2; i++)
        j->out[j->ranked[i].at].advantage = 0;
}

/* Valid members that rows [from, to) need: by the largest of the groups that were merged. */
static int64_t needed(const struct job *j, int64_t from, int64_t to)
{
    if (j->c->min_group) return j->c->min_group;
    int64_t most = 0, size = 0;
    for (int64_t i = from; i < to; i++) {
        size = i > from && j->row[i].group == j->row[i - 1].group ? size + 1 : 1;
        if (size > most) most = size;
    }
    return most > 3 ? most - 1 : 2;
}

static void judge(struct job *j, int64_t from, int64_t to, struct adv_stats *s)
{
    const struct adv_config *c = j->c;
    int64_t valid = 0;
    for (int64_t i = from; i < to; i++) valid += counts(j, j->row[i].at);
    s->groups++;
    if (valid < needed(j, from, to)) {
        s->dropped_groups++;
        for (int64_t i = from; i < to; i++) j->out[j->row[i].at].dropped = true;
        return;
    }
    bool any = false;
    if (c->aggregate == ADV_OF_REWARD)
        any = add_column(j, from, to, REWARD, 1);
    else
        for (int k = 0; k < c->dims; k++)
            if (c->weight[k] != 0) any |= add_column(j, from, to, k, c->weight[k] / weight_sum(c));
    s->zero_std_groups += !any;
    if (c->best_of) select_best(j, from, to);
    for (int64_t i = from; i < to; i++) {
        struct adv_out *o = &j->out[j->row[i].at];
        o->advantage = fmax(-c->clip_max, fmin(c->clip_max, o->advantage));
        o->weight = o->advantage != 0;
    }
}

/* Spread inside groups and between them; groups that were dropped say nothing. */
static void add_spread(struct job *j, int64_t from, int64_t to, struct moments *within,
                       double *means)
{
    const struct moments s = moments(j, from, to, REWARD, 0);
    if (s.n < needed(j, from, to)) return;
    within->mean += s.std * s.std;
    means[within->n++] = s.mean;
}

static double std_of(const double *v, int64_t n)
{
    double mean = 0, var = 0;
    for (int64_t i = 0; i < n; i++) mean += v[i] / (double)n;
    for (int64_t i = 0; i < n; i++) var += (v[i] - mean) * (v[i] - mean) / (double)n;
    return sqrt(var);
}

static void add_totals(struct job *j, struct adv_stats *s)
{
    const struct moments all = moments(j, 0, j->n, REWARD, 0);
    s->members = j->n;
    s->valid = all.n;
    s->mean = all.mean;
    s->std = all.std;
    s->min = all.min;
    s->max = all.max;
    for (int k = 0; k < j->c->dims; k++) {
        const struct moments d = moments(j, 0, j->n, k, 0);
        s->dim_mean[k] = d.mean;
        s->dim_std[k] = d.std;
    }
    for (int64_t i = 0; i < j->n; i++) {
        const double a = fabs(j->out[i].advantage);
        s->effective += a > 0;
        s->adv_max = fmax(s->adv_max, a);
        if (all.n) s->adv_abs_mean += a / (double)all.n;
    }
}

static void open_job(struct job *j)
{
    const struct adv_config *c = j->c;
    const size_t room = (size_t)j->n + 1;
    j->row = malloc(room * sizeof *j->row);
    j->scratch = malloc(room * sizeof *j->scratch);
    j->ranked = malloc(room * sizeof *j->ranked);
    CHECK(j->row && j->scratch && j->ranked, "out of memory");
    for (int64_t i = 0; i < j->n; i++) {
        const struct adv_member *m = &j->m[i];
        set_reward(c, m, &j->out[i]);
        const int64_t key = c->whole_epoch ? 0 : c->merge_same_prompt ? m->prompt : m->group;
        j->row[i] = (struct row){key, m->group, i};
    }
    qsort(j->row, (size_t)j->n, sizeof *j->row, by_key);
    for (int k = 0; k < (c->aggregate == ADV_OF_REWARD ? 1 : c->dims); k++)
        j->global_std[k] =
            moments(j, 0, j->n, c->aggregate == ADV_OF_REWARD ? REWARD : k, c->ddof).std;
}

void advantages(const struct adv_config *c, const struct adv_member *m, int64_t n,
                struct adv_out *out, struct adv_stats *stats)
{
    check(c, n);
    struct job j = {.c = c, .m = m, .out = out, .n = n};
    open_job(&j);
    struct adv_stats s = {0};
    struct moments within = {0};
    double *means = malloc(((size_t)n + 1) * sizeof *means);
    CHECK(means, "out of memory");
    for (int64_t from = 0, to; from < n; from = to) {
        for (to = from + 1; to < n && j.row[to].key == j.row[from].key;) to++;
        judge(&j, from, to, &s);
        add_spread(&j, from, to, &within, means);
    }
    add_totals(&j, &s);
    if (within.n) s.std_within = sqrt(within.mean / (double)within.n);
    s.std_between = std_of(means, within.n);
    if (stats) *stats = s;
    free(means);
    free(j.row);
    free(j.scratch);
    free(j.ranked);
}
