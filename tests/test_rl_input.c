/* What post-training is given: prompt files, scorers' descriptions, combinations of keys. */
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "parallel/comm.h"
#include "rl/algo.h"
#include "rl/identity.h"
#include "rl/prompt_file.h"
#include "rl/scorer_device.h"
#include "tests/check.h"

static struct err read_text(struct prompts *p, const char *text, size_t n)
{
    struct err e = {0};
    char *path = io_path("%s/prompts.txt", test_dir());
    io_write_file(path, text, n, &e);
    prompt_file_read(p, "rl_config.prompt_file", path, &e);
    free(path);
    return e;
}

static void expect_refused(const char *text, size_t n, int code, const char *said)
{
    struct prompts p;
    const struct err e = read_text(&p, text, n);
    EXPECT(e.code == code && strstr(e.msg, said), "code %d: %s; expected %s", e.code, e.msg, said);
    prompts_free(&p);
}

static void test_prompts(struct comm *w)
{
    (void)w;
    struct prompts p;
    const char text[] = "\xef\xbb\xbf  a dog\r\n\n \t\nein H\xc3\xbcndchen \nlast";
    const struct err e = read_text(&p, text, sizeof text - 1);
    EXPECT(!e.code && p.n == 3, "%d prompts: %s", p.n, e.msg);
    if (p.n == 3)
        EXPECT(!strcmp(p.text[0], "a dog") && !strcmp(p.text[1], "ein H\xc3\xbcndchen") &&
                   !strcmp(p.text[2], "last"),
               "\"%s\" \"%s\" \"%s\"", p.text[0], p.text[1], p.text[2]);
    EXPECT(p.n == 3 && p.line[0] == 1 && p.line[1] == 4 && p.line[2] == 5, "lines");
    prompts_free(&p);
    expect_refused("good\nbad \xff\n", 11, RC_DATA, "prompts.txt:2: byte 5");
    expect_refused("good\na\0b\n", 9, RC_DATA, "prompts.txt:2: byte 2");
    expect_refused("say <|VQ_reward|> now\n", 22, RC_DATA, "prompts.txt:1: <|...|>");
    expect_refused("\n \n", 3, RC_DATA, "holds no prompt");
    static char big[20000];
    memset(big, 'x', sizeof big);
    expect_refused(big, sizeof big, RC_DATA, "a prompt of 20000 bytes");
    struct err none = {0};
    prompt_file_read(&p, "rl_config.prompt_file", "myprompts", &none);
    EXPECT(none.code == RC_NOINPUT && strstr(none.msg, "rl_config.prompt_file: myprompts"), "%s",
           none.msg);
    prompt_file_read(&p, "rl_config.prompt_file", test_dir(), &none);
    EXPECT(none.code == RC_NOINPUT && strstr(none.msg, "is a folder"), "%s", none.msg);
}

/* Every rank has a file of its own: all alike, or two that are not those of rank 0. */
static void test_ranks(struct comm *w)
{
    for (int k = 0; k < 4; k++) {
        const bool odd = k && w->rank && w->rank % 2;
        static char *const other[] = {NULL, "one\ntwo\nthree\n", "two\none\n", "one\ntow\n"};
        const char *text = odd ? other[k] : k == 0 && w->rank ? " one \n\ntwo" : "one\ntwo\n";
        char *path = io_path("%s/ranks_%d_%d.txt", test_dir(), k, w->rank);
        struct err e = {0};
        struct prompts p;
        io_write_file(path, text, strlen(text), &e);
        prompt_file_read(&p, "rl_config.prompt_file", path, &e);
        EXPECT(!e.code, "%s", e.msg);
        const bool same = prompt_file_same(w, &p, "rl_config.prompt_file", "prompts.txt", &e);
        const char *want = k == 1 ? "2 prompts on rank 0, other ones on rank 1, 3 (rank 1: 3)"
                                  : "2 prompts on rank 0, other ones on rank 1, 3 (rank 1: 2)";
        EXPECT(same == (k == 0) && (same || (e.code == RC_CONFIG && strstr(e.msg, want))),
               "rank %d, case %d: %s", w->rank, k, e.msg);
        prompts_free(&p);
        free(path);
    }
}

static void test_identity(struct comm *w)
{
    (void)w;
    const char *a = "scorer=x 1\ndims=VQ,MQ\nselftest=0.5,0.25\ndevice=cuda:0\n";
    const struct {
        const char *b;
        bool same, notice;
    } cases[] = {{"scorer=x 1\ndims=VQ,MQ\nselftest=0.5,0.25\ndevice=cuda:0\n", true, false},
                 {"dims=VQ,MQ\nscorer=x 1\nselftest=0.5004,0.2496\ndevice=cuda:1\n", true, true},
                 {"scorer=x 1\ndims=VQ,MQ\nselftest=0.502,0.25\ndevice=cuda:0\n", false, false},
                 {"scorer=x 1\ndims=VQ,MQ\nselftest=0.5\ndevice=cuda:0\n", false, false},
                 {"scorer=x 1\ndims=VQ,MQ\nselftest=nan,0.25\ndevice=cuda:0\n", false, false},
                 {"scorer=x 2\ndims=VQ,MQ\nselftest=0.5,0.25\ndevice=cuda:0\n", false, false},
                 {"scorer=x 1\ndims=VQ,MQ\nselftest=0.5,0.25\n", true, true},
                 {"scorer=x 1\ndims=VQ,MQ\nselftest=0.5,0.25\ndevice=cuda:0\nprofile=official\n",
                  false, false},
                 {"", false, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char why[256], notice[256];
        const bool same = identity_same(a, cases[i].b, why, notice, sizeof why);
        EXPECT(same == cases[i].same && same == !*why, "case %zu: %d, \"%s\"", i, same, why);
        EXPECT(!same || cases[i].notice == (*notice != 0), "case %zu: \"%s\"", i, notice);
    }
}

static void gpus(const char *dir, const char *visible, int want)
{
    const int n = scorer_gpus(dir, visible);
    EXPECT(n == want, "CUDA_VISIBLE_DEVICES=%s: %d GPUs, not %d", visible ? visible : "(none)", n,
           want);
}

static void device(const char *asked, int local, int n, const char *want)
{
    char out[SCORER_DEVICE] = "";
    struct err e = {0};
    const bool ok = scorer_device(asked, local, n, out, &e);
    if (*want == '!')
        EXPECT(!ok && e.code == RC_CONFIG && strstr(e.msg, want + 1), "%s: %s", out, e.msg);
    else
        EXPECT(ok && !strcmp(out, want), "%s, local rank %d of %d GPUs: %s, not %s %s",
               asked ? asked : "null", local, n, out, want, e.msg);
}

static void test_devices(struct comm *w)
{
    (void)w;
    struct err e = {0};
    static const char *const files[] = {"nvidia0",   "nvidia1",    "nvidia10",
                                        "nvidiactl", "nvidia-uvm", "nvidia3x"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = io_path("%s/%s", test_dir(), files[i]);
        io_write_file(path, "", 0, &e);
        free(path);
    }
    unsetenv("OSP_GPUS");
    gpus("/no/such/folder", NULL, 0);
    gpus("/no/such/folder", "0,1", 0);
    gpus(test_dir(), NULL, 3);
    gpus(test_dir(), "", 0);
    gpus(test_dir(), "-1", 0);
    gpus(test_dir(), "NoDevFiles", 0);
    gpus(test_dir(), "2", 1);
    gpus(test_dir(), "GPU-0af3,GPU-77", 2);
    gpus(test_dir(), "0,-1,1", 1);
    gpus(test_dir(), "0,1,2,3,4", 3);
    setenv("OSP_GPUS", "5", 1);
    gpus("/no/such/folder", NULL, 5);
    unsetenv("OSP_GPUS");
    for (int local = 0; local < 8; local++) {
        const char *const want[] = {"cuda:0", "cuda:1", "cuda:2", "cuda:3"};
        device(NULL, local, 4, want[local % 4]);
        device("cuda", local, 4, want[local % 4]);
        device("cuda", local, 1, "cuda:0");
        device("cuda:2", local, 4, "cuda:2");
        device("cuda:2", local, 0, "cuda:2");
        device("cpu", local, 4, "cpu");
        device(NULL, local, 0, "cpu");
        device("cuda", local, 0, "!no GPU is found here");
    }
    device("gpu", 0, 4, "!none of cpu, cuda, cuda:N");
    device("cuda:", 0, 4, "!none of cpu, cuda, cuda:N");
    device("cuda:x", 0, 4, "!none of cpu, cuda, cuda:N");
}

/* A configuration as it is before anything is decided. */
static struct rl_config undecided(int algo)
{
    return (struct rl_config){.algo = algo,
                              .shift = 7,
                              .steps = 25,
                              .sde_steps = -1,
                              .fraction = -1,
                              .members = 4,
                              .window_start = -1,
                              .window_size = -1,
                              .window_stride = -1,
                              .window_iters = -1,
                              .window_limit = -1,
                              .roll_back = true,
                              .eta = -1,
                              .compress = -1,
                              .ddof = -1,
                              .adv_eps = -1};
}

static void refused(struct rl_config c, const char *said)
{
    struct err e = {0};
    EXPECT(!algo_resolve(&c, &e) && e.code == RC_CONFIG && strstr(e.msg, said), "%s; expected %s",
           e.msg, said);
}

/* Every algorithm has noise and something to train in every epoch, whatever the window does. */
static void test_plans(struct comm *w)
{
    (void)w;
    for (int algo = ALGO_MIX_GRPO; algo < ALGO_NFT; algo++)
        for (int window = 0; window <= 1 + WINDOW_EXP_DECAY; window++)
            for (int rule = 0; rule <= 1 + G_CPS; rule++) {
                struct rl_config c = undecided(algo);
                struct err e = {0};
                c.window = window;
                c.g_rule = rule;
                c.window_iters = 1;
                c.window_rate = 0.1;
                EXPECT(algo_resolve(&c, &e), "%s: %s", algo_name(algo), e.msg);
                for (int64_t epoch = 0; epoch < 60 && !e.code; epoch++) {
                    const struct step_plan p = algo_step_plan(&c, 1, epoch);
                    EXPECT(p.num_recorded > 0, "%s, window %d, rule %d, epoch %d: nothing to train",
                           algo_name(algo), window, rule, (int)epoch);
                }
            }
}

static void test_refusals(struct comm *w)
{
    (void)w;
    struct rl_config c = undecided(ALGO_MIX_GRPO);
    c.g_rule = 1 + G_ETA_SNR;
    c.eta = 0;
    refused(c, "sde.eta: 0");
    c = undecided(ALGO_MIX_GRPO);
    c.g_rule = 1 + G_CPS;
    c.eta = 2;
    refused(c, "at most 1");
    c = undecided(ALGO_MIX_GRPO);
    c.window_start = 24;
    c.window_size = 1;
    refused(c, "window.start");
    c = undecided(ALGO_FLOW_GRPO_FAST);
    c.window_size = 1;
    c.window_limit = 25;
    refused(c, "window.limit");
    c = undecided(ALGO_MIX_GRPO_WINDOW);
    c.window_size = 26;
    refused(c, "window.size");
    c = undecided(ALGO_MIX_GRPO);
    c.steps = 1;
    refused(c, "num_inference_steps");
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "prompt files: what is read, what is refused and where", .run = test_prompts},
        {.name = "prompt files of all ranks are compared", .run = test_ranks, .ranks = {4}},
        {.name = "scorers are compared by what changes their scores", .run = test_identity},
        {.name = "scorers have the GPU of their rank", .run = test_devices},
        {.name = "every algorithm, window and rule has something to train", .run = test_plans},
        {.name = "keys that leave nothing to train are refused", .run = test_refusals},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
