/* device: auto: which device the ranks of a job compute on, by the GPUs of their host. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/io.h"
#include "parallel/comm.h"
#include "tests/check.h"
#include "train/session.h"

/* A stand-in for the cuda device: so many GPUs, no fp64. */
static int gpus;
static int count(void) { return gpus; }
static const struct dev_ops *ops(enum dtype t) { return t == DT_F64 ? NULL : dev_null.ops(t); }
/* Which one a rank would take; below 0: such GPUs have no names. */
static _Thread_local int unit = -1;
static bool unit_name(char out[DEV_UNIT_NAME])
{
    snprintf(out, DEV_UNIT_NAME, "GPU %d", unit);
    return unit >= 0;
}
static const struct dev_backend stand_in = {
    .name = "cuda", .ops = ops, .units = count, .unit_name = unit_name};

/* The choice of all ranks, and in said[] what they write to stderr meanwhile. Collective. */
static const char *choice(struct comm *world, enum device_choice device, int units, int dtype,
                          char said[1024])
{
    char *path = io_path("%s/said", test_dir());
    int stderr_was = -1, to = -1;
    said[0] = 0;
    if (world->rank == 0) {
        gpus = units;
        to = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
        stderr_was = dup(2);
        CHECK(to >= 0 && stderr_was >= 0 && dup2(to, 2) == 2, "%s", path);
    }
    comm_barrier(world, "before");
    const struct settings s = {.device = device, .weight_dtype = dtype};
    const char *name = session_device(world, &s);
    comm_barrier(world, "after");
    if (world->rank == 0) {
        CHECK(dup2(stderr_was, 2) == 2, "stderr");
        const ssize_t n = pread(to, said, 1023, 0);
        said[n > 0 ? n : 0] = 0;
        close(to);
        close(stderr_was);
    }
    free(path);
    return name;
}

static void test_device(struct comm *world)
{
    const struct {
        enum device_choice asked;
        int units, dtype; /* of weight_dtype: bf16, fp32, fp64 */
        const char *want;
        bool reason;
    } cases[] = {
        {DEVICE_AUTO, world->size, 1, "cuda", false},
        {DEVICE_AUTO, world->size + 1, 0, "cuda", false},
        {DEVICE_AUTO, world->size - 1, 1, "cpu", world->size > 1},
        {DEVICE_AUTO, 0, 1, "cpu", false},
        {DEVICE_AUTO, world->size, 2, "ref", false},
        {DEVICE_CUDA, 0, 1, "cuda", false}, /* asked for: dev_open says what is missing */
        {DEVICE_CPU, world->size, 1, "cpu", false},
        {DEVICE_CPU, world->size, 2, "ref", false},
        {DEVICE_REF, world->size, 1, "ref", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char said[1024], want[64];
        const char *got = choice(world, cases[i].asked, cases[i].units, cases[i].dtype, said);
        EXPECT(strcmp(got, cases[i].want) == 0, "case %d: %s, not %s", (int)i, got, cases[i].want);
        if (world->rank) continue;
        snprintf(want, sizeof want, "has %d GPUs for %d ranks", cases[i].units, world->size);
        const char *reason = strstr(said, want);
        EXPECT(cases[i].reason ? reason && !strstr(reason + 1, want) /* once */ : !*said,
               "case %d says \"%s\"", (int)i, said);
    }
}

/* Launchers that show each rank one GPU: whose is whose is in their names. */
static void test_names(struct comm *world)
{
    char said[1024];
    unit = world->rank;
    EXPECT(!strcmp(choice(world, DEVICE_AUTO, 1, 1, said), "cuda") && !*said, "own: %s", said);
    unit = 0;
    EXPECT(!strcmp(choice(world, DEVICE_AUTO, world->size, 1, said), "cpu"), "one for all");
    if (world->rank == 0)
        EXPECT(strstr(said, "computes on the CPU: the host of rank"), "says \"%s\"", said);
    unit = world->rank < 2 ? 0 : world->rank;
    EXPECT(!strcmp(choice(world, DEVICE_AUTO, 8, 1, said), "cpu"), "one for two");
    unit = -1;
}

int main(int argc, char **argv)
{
    dev_register(&stand_in);
    const struct test tests[] = {
        {.name = "device: auto takes a GPU for each rank or none, and says why",
         .run = test_device,
         .ranks = {1, 2, 3}},
        {.name = "or the one that its launcher shows to it", .run = test_names, .ranks = {2, 3}},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
