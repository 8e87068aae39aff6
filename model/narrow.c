#include "model/dit.h"

/* The batch is the slowest dimension of every tensor of a run but T_QKV_ALL. */
static void lead(struct tensor *t, int of, int samples)
{
    if (!t->data) return;
    CHECK(t->dim[0] % of == 0, "%lld rows of %d samples", (long long)t->dim[0], of);
    *t = tensor_rows(*t, 0, t->dim[0] / of * samples);
}

static void narrow_embed(struct embed_saved *s, int of, int samples)
{
    struct tensor *all[] = {&s->x,      &s->ctx,  &s->e, &s->e0,     &s->text_h,
                            &s->text_g, &s->wave, &s->h, &s->silu_h, &s->silu_e};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) lead(all[i], of, samples);
}

/* Gathered queries, and what belongs to them, go sequence by sequence like all rows; but q, k and v
 * of all samples follow each other (parallel/ulysses.h), and are sent again. */
static void narrow_block(struct block_saved *s, int of, int samples)
{
    s->t[T_QKV_ALL].data = NULL;
    for (int i = 0; i < T_COUNT; i++) lead(&s->t[i], of, samples);
    for (int i = 0; i < LINEAR_COUNT; i++) lead(&s->linear[i].h, of, samples);
}

void dit_narrow(struct dit_run *run, const struct shape_plan *p)
{
    const struct shape_plan *was = run->plan;
    const int of = was->batch, n = p->batch;
    CHECK(run->train && n <= of && p->max_rows <= was->max_rows && p->num_layers == was->num_layers,
          "a pass over %d samples cannot be narrowed to %d", of, n);
    if (n == of) return;
    lead(&run->in.xt, of, n);
    lead(&run->in.text, of, n);
    narrow_embed(&run->embed, of, n);
    for (int i = 0; i < was->num_layers; i++) {
        narrow_block(&run->saved[i], of, n);
        lead(&run->x[i], of, n);
    }
    lead(&run->x[was->num_layers], of, n);
    struct tensor *head[] = {&run->head.mod, &run->head.mean, &run->head.rstd, &run->head.a,
                             &run->out};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) lead(head[i], of, n);
    run->plan = p;
}
