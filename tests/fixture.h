/* A whole model on a device for tests: mesh, parameters, arenas, one shape plan. */
#ifndef TESTS_FIXTURE_H
#define TESTS_FIXTURE_H
#include "model/lora.h"
#include "parallel/fsdp.h"
#include "train/dryrun.h"
struct fixture {
    struct dev *dev;
    struct mesh mesh;
    struct dit *dit;
    struct lora *lora; /* NULL: none */
    struct fsdp *fsdp;
    struct shape_plan *plan;
    struct arena keep, tmp;
    struct ctx ctx;
};
struct fixture_opts {
    const char *device;
    enum dtype compute;
    struct model_config model;
    enum recompute recompute;
    const struct cfg_ints *recompute_blocks;
    int batch, t, h, w;          /* token grid */
    struct mesh_degrees degrees; /* zeros: all ones, fsdp = world */
    struct fsdp_opts fsdp;
    const struct lora_config *lora; /* NULL: none */
    bool lora_old;                  /* with a second set of weights (DiffusionNFT) */
    int threads;
    int room; /* how many times the usual arenas; 0: once */
};
void fixture_open(struct fixture *f, struct comm *world, const struct fixture_opts *o);
void fixture_close(struct fixture *f);
/* The dry run of a training step of these. */
struct dryrun_in fixture_dryrun(const struct fixture_opts *o, const struct comm *world);
struct model_config fixture_model(void); /* a tiny default */
/* One forward and backward pass of mean((v - target)^2) / share. Arrays are host doubles in the
 * latent layout [B,C,T,2H,2W]; outputs may be NULL. Returns the loss of this rank's rows, already
 * divided; gradients are in the shards. */
struct step_io {
    const double *xt, *target, *text, *t;
    double *v, *dxt, *dtext;
    double share;  /* number of elements the loss is divided by */
    bool backward; /* false: forward only, nothing kept */
};
double fixture_step(struct fixture *f, const struct step_io *io);
/* out = the run of the last fixture_step, valid until the next one. */
extern _Thread_local struct dit_run fixture_run;
#endif
