#include "train/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "core/log.h"
#include "parallel/launch.h"
#include "train/fit.h"

/* What a rank sees: launchers show all GPUs of the host to each of its ranks, or to each its own.
 */
struct found {
    int gpus;
    struct launch_place at;
    char unit[DEV_UNIT_NAME]; /* "": unknown */
};

/* Rank r would compute on a GPU of its own. */
static bool has_own(const struct found *all, int ranks, int r)
{
    if (!*all[r].unit) return all[r].gpus >= all[r].at.ranks;
    for (int o = 0; o < ranks; o++)
        if (o != r && all[o].at.host == all[r].at.host && !strcmp(all[o].unit, all[r].unit))
            return false;
    return true;
}

/* Whether all ranks have a GPU each; the answer is the same on all of them. */
static bool gpu_for_each(struct comm *world, enum dtype compute)
{
    struct found mine = {dev_supports("cuda", compute) ? dev_units("cuda") : 0, launch_place(world),
                         ""};
    struct err e = {0};
    if (mine.gpus && !dev_unit_name("cuda", mine.unit)) *mine.unit = 0;
    if (mine.at.rank == 0 && dev_broken(&e))
        log_warn("device: auto computes on the CPU: %s", e.msg);
    struct found *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    comm_gather_bytes(world, all, &mine, sizeof mine, "GPUs");
    int some = 0, without = -1;
    for (int r = 0; r < world->size; r++) {
        some += all[r].gpus > 0;
        if (!has_own(all, world->size, r)) without = r;
    }
    if (some && without >= 0 && world->rank == 0)
        log_warn("device: auto computes on the CPU: the host of rank %d has %d GPUs for %d ranks; "
                 "start one rank per GPU, or say device: cuda or cpu",
                 without, all[without].gpus, all[without].at.ranks);
    free(all);
    return without < 0;
}

const char *session_device(struct comm *world, const struct settings *s)
{
    const enum dtype compute = settings_dtype(s);
    switch (s->device) {
    case DEVICE_REF:
        return "ref";
    case DEVICE_CUDA:
        return "cuda";
    case DEVICE_NULL:
        err_stop(RC_CONFIG, "device: null computes nothing; for a dry run use osp plan");
    case DEVICE_AUTO:
        if (gpu_for_each(world, compute)) return "cuda";
        break;
    default:
        break;
    }
    return dev_supports("cpu", compute) ? "cpu" : "ref";
}

struct mesh_degrees session_degrees(const struct settings *s, int ranks)
{
    return (struct mesh_degrees){.ssp =
                                     s->use_skiparse_sequence_parallel && plan_ratio(&s->model) > 1
                                         ? (int)s->skiparse_sp_size
                                         : 1,
                                 .sp = s->use_sequence_parallel ? (int)s->sp_size : 1,
                                 .fsdp = s->fsdp_size == FSDP_AUTO ? ranks : (int)s->fsdp_size};
}

enum recompute session_recompute(const struct settings *s, const struct cfg_ints **blocks)
{
    *blocks = s->recompute == -1 ? &s->recompute_blocks : NULL;
    if (s->recompute == RECOMPUTE_AUTO) return RECOMPUTE_ALL; /* until something better fits */
    if (s->recompute >= 0) return (enum recompute)s->recompute;
    return s->recompute == -2 && s->gradient_checkpointing ? RECOMPUTE_ALL : RECOMPUTE_NONE;
}

struct dryrun_in session_dryrun(const struct settings *s, int ranks, int rank,
                                struct session_shape shape, bool train)
{
    struct dryrun_in in = {.model = s->model,
                           .compute = settings_dtype(s),
                           .ranks = ranks,
                           .rank = rank,
                           .degrees = session_degrees(s, ranks),
                           .batch = shape.batch,
                           .t = (int)shape.t,
                           .h = (int)shape.h / 2,
                           .w = (int)shape.w / 2,
                           .train = train,
                           .batched = shape.batched};
    if (s->device == DEVICE_CPU) in.device = "cpu"; /* a GPU is not there to be asked */
    in.recompute = session_recompute(s, &in.recompute_blocks);
    in.fsdp = (struct fsdp_opts){.prefetch = (int)s->explicit_prefetching_num_blocks,
                                 .keep_after_forward = s->reshard_after_forward == 2,
                                 .optimizer = train,
                                 .ema = train && s->ema_decay > 0};
    in.lora = &s->lora;
    in.body = shape.body;
    in.body_arg = shape.body_arg;
    in.lora_old = shape.lora_old;
    return in;
}

void session_settings(struct comm *world, struct loaded_settings *l, enum settings_verb verb,
                      const char *path, char *const *sets, int num_sets)
{
    for (int turn = 0; turn < 2; turn++) {
        if ((world->rank == 0) == (turn == 0)) {
            settings_load(l, verb, path, sets, num_sets);
            settings_check_ranks(l, world->size);
            watchdog_deadline(launch_watchdog(), l->s.comm_deadline_s);
        }
        comm_barrier(world, "configuration");
    }
}

void session_lock_output(struct comm *world, struct lock *lock, bool make, const char *dir,
                         const char *file, const char *verb)
{
    struct err e = {0};
    if (world->rank == 0 && lock->fd < 0 && (make || io_exists(dir))) {
        char *path = io_path("%s/%s", dir, file), holder[32];
        io_mkdir(dir, &e);
        if (!e.code && !lock_take(lock, path, holder, &e) && !e.code)
            err_set(
                &e, RC_CANTCREAT,
                "%s is in use by another run (%s), so %s may not write to it; stop that one, or "
                "choose another output_dir",
                dir, holder, verb);
        free(path);
    }
    comm_broadcast_bytes(world, &e, sizeof e, 0, "output folder");
    err_raise(&e);
}

static int threads_of(struct comm *world)
{
    const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN), ranks = launch_local_ranks(world);
    if (getenv("OMP_NUM_THREADS")) return atoi(getenv("OMP_NUM_THREADS")); /* of this rank alone */
    return cores > ranks ? cores / ranks : 1;
}

static void check_shape(const struct settings *s, struct session_shape shape)
{
    if (shape.channels != s->model.in_dim)
        err_stop(RC_CONFIG, "model_config.in_dim is %lld, but the latents have %lld channels",
                 (long long)s->model.in_dim, (long long)shape.channels);
    if (shape.h % 2 || shape.w % 2)
        err_stop(RC_CONFIG,
                 "latents of %lld x %lld: height and width must be even (patches are 2 x 2)",
                 (long long)shape.h, (long long)shape.w);
}

/* Bytes that this rank may fill. */
static size_t memory_budget(struct comm *world, struct dev *d, const struct settings *s)
{
    if (s->memory_budget_gb > 0) return (size_t)(1e9 * s->memory_budget_gb);
    const size_t gpu = dev_free_bytes(d);
    if (gpu) return gpu / 100 * 94;
    const size_t host = fit_host_bytes();
    if (!host)
        err_stop(RC_CONFIG, "recompute: auto: this system does not say how much memory is free "
                            "(/proc/meminfo); give memory_budget_gb");
    return host / 10 * 8 / (size_t)launch_local_ranks(world);
}

/* The same on all ranks: what the rank with the least room can keep. */
static void fit_recompute(struct session *s, struct dryrun_in *in)
{
    struct comm *world = s->world;
    const size_t bytes = memory_budget(world, s->dev, s->set);
    int *all = calloc((size_t)world->size, sizeof *all);
    CHECK(all, "out of memory");
    int level = fit_level(in, bytes, &s->cost);
    comm_gather_bytes(world, all, &level, sizeof level, "recompute: auto");
    for (int r = 0; r < world->size; r++) level = all[r] < level ? all[r] : level;
    free(all);
    fit_take(in, level);
    dryrun(in, &s->cost);
    char text[256];
    fit_describe(&in->model, in->policy, text, sizeof text);
    log_info("recompute: auto | %s | %.3f of %.3f GB", text, 1e-9 * (double)dryrun_bytes(&s->cost),
             1e-9 * (double)bytes);
}

void session_open(struct session *s, const struct settings *set, struct comm *world,
                  struct session_shape shape, bool train)
{
    *s = (struct session){.set = set, .world = world, .shape = shape};
    check_shape(set, shape);
    struct dryrun_in in = session_dryrun(set, world->size, world->rank, shape, train);
    in.device = session_device(world, set);
    in.threads = threads_of(world);
    s->dev = dev_open(in.device, in.compute, in.threads);
    s->dev->own_attention = set->attention == ATTENTION_BY_US; /* its own memory goes with these */
    s->dev->deterministic = set->deterministic_training;
    in.stands_for = s->dev;
    if (train && set->recompute == RECOMPUTE_AUTO)
        fit_recompute(s, &in);
    else
        dryrun(&in, &s->cost);
    dryrun_model_flops(&in, &s->model_forward, &s->model_backward);
    world->deadline_s = set->comm_deadline_s;
    world->check = set->check_comm;
    comm_device(world, s->dev);
    mesh_init(&s->mesh, world, in.degrees);
    int most = in.t > in.h ? in.t : in.h;
    most = in.w > most ? in.w : most;
    s->dit = dit_new(s->dev, &in.model, in.recompute, in.recompute_blocks, most);
    if (in.by_block) dit_set_policies(s->dit, in.policy);
    if (!train) dit_freeze(s->dit);
    if (in.lora->rank)
        s->lora = lora_new(
            s->dev, s->dit, in.lora,
            (struct lora_opts){.optimizer = train, .ema = in.fsdp.ema, .old = in.lora_old});
    s->fsdp = fsdp_new(s->dev, &s->mesh, s->dit->unit, s->dit->num_units, in.fsdp);
    s->plan =
        plan_shape(s->dev, &s->mesh, &in.model, in.batch, in.t, in.h, in.w, (int)in.model.text_len);
    arena_init(&s->keep, s->dev, s->cost.keep_bytes + DRYRUN_SPARE, "keep");
    arena_init(&s->tmp, s->dev, s->cost.tmp_bytes + DRYRUN_SPARE, "tmp");
    s->ctx = (struct ctx){.dev = s->dev,
                          .mesh = &s->mesh,
                          .hooks = fsdp_hooks(s->fsdp),
                          .keep = &s->keep,
                          .tmp = &s->tmp};
    s->watchdog = launch_watchdog();
    watchdog_mesh(s->watchdog, &s->mesh);
    s->run = calloc(1, sizeof *s->run);
    CHECK(s->run, "out of memory");
    char text[256];
    dev_describe(s->dev, text, sizeof text);
    log_info("device %s | %d rank%s: fsdp %d, skiparse_sp %d, sp %d, data %d", text, world->size,
             world->size > 1 ? "s" : "", in.degrees.fsdp, in.degrees.ssp, in.degrees.sp,
             s->mesh.dp);
    log_info("model %.3f M parameters | activations %.2f MB, states %.1f MB per rank",
             1e-6 * (double)s->cost.params, 1e-6 * (double)(s->cost.keep_bytes + s->cost.tmp_bytes),
             1e-6 * (double)(s->cost.master_bytes + s->cost.moment_bytes + s->cost.ema_bytes +
                             s->cost.grad_bytes + s->cost.wire_bytes + s->cost.slot_bytes +
                             s->cost.lora_bytes));
    if (s->lora)
        log_info("%d adapters of rank %lld: %.3f M parameters, the rest is frozen",
                 s->lora->num_params / 2, (long long)s->lora->rank,
                 1e-6 * (double)lora_num_elements(s->lora));
}

size_t session_bytes(const struct session *s)
{
    return s->dev->count.bytes_peak - s->keep.size - s->tmp.size + s->keep.peak + s->tmp.peak +
           2 * (size_t)DRYRUN_SPARE;
}

void session_close(struct session *s)
{
    log_info("memory of this rank: %.3f MB at most, %.3f MB planned",
             1e-6 * (double)session_bytes(s), 1e-6 * (double)dryrun_bytes(&s->cost));
    watchdog_mesh(s->watchdog, NULL);
    free(s->run);
    arena_free(&s->keep);
    arena_free(&s->tmp);
    plan_free(s->plan);
    fsdp_free(s->fsdp);
    lora_free(s->lora);
    dit_free(s->dit, s->dev);
    mesh_free(&s->mesh);
    comm_device(s->world, NULL);
    dev_close(s->dev);
}
