/* Everything a verb that runs the model needs, built in order and freed in reverse: settings,
 * ranks, device, parameters, arenas sized by the dry run, one shape plan. */
#ifndef TRAIN_SESSION_H
#define TRAIN_SESSION_H
#include "core/lock.h"
#include "model/dit.h"
#include "parallel/fsdp.h"
#include "parallel/watchdog.h"
#include "train/dryrun.h"
#include "train/settings.h"
struct session_shape {
    int batch;
    int64_t t, h, w; /* latent, before patching */
    int64_t channels;
    /* what runs, for the size of the arenas (dryrun.h); NULL: a training step, or a pass forward */
    void (*body)(void *arg, struct ctx *c, struct dit *d);
    void *body_arg;
    bool lora_old; /* adapters with old weights */
    bool batched;  /* sampling: the batch is both branches of guidance, of half as many videos */
};
struct session {
    const struct settings *set;
    struct comm *world;
    struct mesh mesh;
    struct dev *dev;
    struct dit *dit;
    struct lora *lora; /* NULL: settings.lora.rank is 0 */
    struct fsdp *fsdp;
    struct shape_plan *plan;
    struct arena keep, tmp;
    struct ctx ctx;
    struct dit_run *run; /* the pass in hand */
    struct watchdog *watchdog;
    struct session_shape shape;
    struct dryrun_out cost;
    struct dryrun_phase model_forward, model_backward; /* FLOPs that MFU counts, per micro-batch */
};
/* settings_load on rank 0 first, so that a mistake is reported once; then on all ranks. */
void session_settings(struct comm *world, struct loaded_settings *l, enum settings_verb verb,
                      const char *path, char *const *sets, int num_sets);
/* Collective: one job per output folder, held by rank 0 in dir/file until lock_release. make: makes
 * the folder; else it is only taken where the folder is there already, so that what is refused
 * between two calls leaves nothing behind (lock: fd -1 before the first). Stops with RC_CANTCREAT
 * and the owner's pid when another process has it. */
void session_lock_output(struct comm *world, struct lock *lock, bool make, const char *dir,
                         const char *file, const char *verb);
/* degrees from the settings and the number of ranks. */
struct mesh_degrees session_degrees(const struct settings *s, int ranks);
enum recompute session_recompute(const struct settings *s, const struct cfg_ints **blocks);
struct dryrun_in session_dryrun(const struct settings *s, int ranks, int rank,
                                struct session_shape shape, bool train);
void session_open(struct session *s, const struct settings *set, struct comm *world,
                  struct session_shape shape, bool train);
/* What the device has handed out at most, the arenas counted as far as they were filled. (They are
 * as large as the dry run says: by their sizes a plan that asks for too much would look right.) */
size_t session_bytes(const struct session *s);
void session_close(struct session *s);
/* Collective: the device by name. "auto" is cuda when every rank of the world can have a GPU of its
 * own, else cpu (ref for fp64); the reason is logged when only some could. */
const char *session_device(struct comm *world, const struct settings *s);
#endif
