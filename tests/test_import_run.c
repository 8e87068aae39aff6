/* osp convert adapter as a user types it, and on files that torch, safetensors and peft have
 * written themselves (tests/peft_files.py). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "data/video.h"
#include "model/lora.h"
#include "tests/check.h"
#include "tests/import_case.h"
#include "tests/process.h"
#include "train/merge.h"

/* ---- the program -----------------------------------------------------------------------------*/
static const char *build(void) { return getenv("BUILD") ? getenv("BUILD") : "build/release"; }

static int run(const char *cmd, char said[1 << 14]) { return test_command(cmd, said, 1 << 14); }

static void sample(const char *base, const char *lora, const char *out)
{
    char said[1 << 14];
    char *cmd = io_path("mpirun -n 1 %s/osp sample configs/sample/tiny.yaml checkpoint=%s %s%s "
                        "output_dir=%s/%s num_frames=null height=null width=null "
                        "scheduler_config.num_inference_steps=2 2>&1 </dev/null",
                        build(), base, lora ? "lora=" : "", lora ? lora : "", test_dir(), out);
    EXPECT(run(cmd, said) == 0, "%s: %s", cmd, said);
    EXPECT(!lora || strstr(said, "raw weights of"), "%s", said);
    free(cmd);
}

/* By its pixels: the files name the adapters that made them. */
static bool same_video(const char *a, const char *b)
{
    enum { BYTES = 3 * 4 * 16 * 16 };
    const int64_t index[] = {0, 1, 2, 3};
    const char *const name[] = {a, b};
    uint8_t x[2][BYTES];
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        char *path = io_path("%s/%s/video_000000_00.mp4", test_dir(), name[i]);
        EXPECT(video_read(path, index, 4, (struct video_crop){0}, 16, 16, x[i], &e), "%s", e.msg);
        free(path);
    }
    return memcmp(x[0], x[1], BYTES) == 0;
}

/* As a user types it. */
static void test_program(struct comm *world)
{
    if (system("command -v mpirun >/dev/null 2>&1")) {
        test_skip("mpirun is missing");
        return;
    }
    char *base = the_base(), said[1 << 14];
    struct folder f = {0};
    add_official(&f, 4, ".default", FORMAT_F32);
    write_folder(&f, "typed", true, import_json);
    make_native("native", base, STATE_EMA, lora_official_targets);
    const char *d = test_dir();
    char *cmd[] = {
        io_path("%s/osp convert adapter %s/typed %s %s/typed-out 2>&1", build(), d, base, d),
        io_path("%s/osp convert merge %s %s/typed-out %s/typed-merged 2>&1", build(), base, d, d),
        io_path("%s/osp inspect %s/typed-out --verify 2>&1", build(), d),
        io_path("%s/osp convert adapter %s/typed %s 2>&1", build(), d, base),
        io_path("%s/osp convert adapter %s/typed %s %s/x --ema 2>&1", build(), d, base, d),
        io_path("%s/osp convert adapter %s/typed\xff %s %s/x 2>&1", build(), d, base, d),
        io_path("%s/typed-out", d),
        io_path("%s/native", d),
        io_path("%s/typed-merged", d),
        io_path("%s/osp inspect %s/typed-merged 2>&1", build(), d)};
    EXPECT(run(cmd[0], said) == 0 && strstr(said, "32 adapters of rank 2, alpha 6"), "%s", said);
    EXPECT(strstr(said, "target_modules is one text and not a list"), "%s", said);
    EXPECT(run(cmd[1], said) == 0 && strstr(said, "32 adapters"), "%s", said);
    EXPECT(run(cmd[2], said) == 0 && strstr(said, "adapters   rank 2, alpha 6, scale 3") &&
               strstr(said, "made by    osp convert adapter, from ") && !strstr(said, " -,"),
           "%s", said);
    EXPECT(
        run(cmd[9], said) == 0 && strstr(said, "run        stage merged") &&
            strstr(said, "made by    osp convert merge, from ") && strstr(said, "from base  ") &&
            strstr(
                said,
                "typed-out/checkpoints/iter_000000000, step 0, lora weights\n           SHA-256 "),
        "%s", said);
    for (int i = 3; i < 5; i++)
        EXPECT(run(cmd[i], said) == RC_USAGE && strstr(said, "PEFT_DIR BASE OUT"), "%s", said);
    EXPECT(run(cmd[5], said) == RC_USAGE && strstr(said, "is not UTF-8"), "%s", said);
    expect_equal(world, "typed-out", "native", true);
    sample(base, NULL, "video-base");
    sample(base, cmd[6], "video-import");
    sample(base, cmd[7], "video-native");
    sample(cmd[8], NULL, "video-merged");
    EXPECT(same_video("video-import", "video-native"), "other videos than the native adapters'");
    EXPECT(!same_video("video-import", "video-base"), "the adapters change nothing");
    EXPECT(!same_video("video-merged", "video-base"), "merging changes nothing");
    for (int i = 0; i < 10; i++) free(cmd[i]);
    free_folder(&f);
    free(base);
}

/* ---- files of the real libraries -------------------------------------------------------------*/
/* Runs tests/peft_files.py; false and a skip where the modules are missing. */
static bool python(const char *modules, const char *what, const char *folder)
{
    const char *py = process_python(modules);
    if (!py) {
        test_skip("no python with %s (python3 -m venv build/venv && build/venv/bin/pip install "
                  "torch==2.13.0 numpy safetensors peft)",
                  modules);
        return false;
    }
    char *cmd = io_path("%s tests/peft_files.py %s %s 2>&1", py, what, folder), said[1 << 14];
    EXPECT(run(cmd, said) == 0, "%s: %s", cmd, said);
    free(cmd);
    return true;
}

static void expect_json(const char *file, const char *values, int least)
{
    char *path = io_path("%s/%s", test_dir(), file), *json = io_path("%s/%s", test_dir(), values);
    struct err e = {0};
    json_t *want = json_load_file(json, 0, NULL);
    struct format *f = format_open(path, &e);
    EXPECT(f && want && format_num_tensors(f) >= least, "%s: %s", file, e.msg);
    for (int i = 0; f && i < format_num_tensors(f); i++) {
        const struct format_tensor *t = format_tensor_at(f, i);
        const json_t *v = json_object_get(want, t->name);
        double *x = malloc((size_t)t->count * sizeof *x + 1);
        format_read_f64(f, t, 0, t->count, x, &e);
        bool same = !e.code && v && (int64_t)json_array_size(v) == t->count;
        for (int64_t k = 0; same && k < t->count; k++)
            same = x[k] == json_number_value(json_array_get(v, (size_t)k));
        EXPECT(same, "%s: \"%s\" %s", file, t->name, e.msg);
        free(x);
    }
    format_close(f);
    json_decref(want);
    free(json);
    free(path);
}

static void test_libraries(struct comm *world)
{
    (void)world;
    if (!python("torch, safetensors.torch", "tensors", test_dir())) return;
    expect_json("tensors.safetensors", "tensors.json", 8);
    expect_json("tensors.bin", "tensors.json", 13);
    expect_json("state.bin", "state.json", 7);
    const char *const bad[][2] = {{"old.bin", "is in torch's form before the zip files"},
                                  {"module.bin", "its pickle asks for torch.nn.modules.linear"}};
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        char *path = io_path("%s/%s", test_dir(), bad[i][0]);
        EXPECT(!format_open(path, &e) && strstr(e.msg, bad[i][1]), "%s", e.msg);
        free(path);
    }
}

/* The matrices of the averaged weights, by module. */
static void write_base(struct ckpt *c)
{
    struct folder *f = calloc(1, sizeof *f);
    struct bytes b = {0};
    for (int i = 0; i < ckpt_num_tensors(c); i++) {
        const struct ckpt_tensor t = ckpt_tensor_at(c, i);
        const size_t n = strlen(t.name);
        if (t.kind != STATE_EMA || t.ndim != 2 || strncmp(t.name, "blocks.", 7) || n < 8 ||
            strcmp(t.name + n - 7, ".weight"))
            continue;
        char *module = strndup(t.name, n - 7);
        add_tensor(f, module, FORMAT_F32, t.dim[0], t.dim[1]);
        ckpt_read_f64(c, &t, 0, t.count, f->x[f->n - 1]);
        free(module);
    }
    safetensors_file(&b, f->t, f->n);
    free(bytes_write(&b, "base.safetensors"));
    bytes_free(&b);
    free_folder(f);
    free(f);
}

/* W + alpha/r B A of ours, in f32, against peft's, in f64. */
static void compare_merged(struct comm *world)
{
    struct ckpt *c = open_one(world, "peft-merged");
    char *path = io_path("%s/merged.safetensors", test_dir());
    struct err e = {0};
    struct format *f = format_open(path, &e);
    EXPECT(f && format_num_tensors(f) == 40, "%s", e.msg);
    double worst = 0;
    for (int i = 0; f && i < format_num_tensors(f); i++) {
        const struct format_tensor *t = format_tensor_at(f, i);
        struct ckpt_tensor w;
        char *name = io_path("%s.weight", t->name);
        double *x = malloc((size_t)t->count * sizeof *x), *y = malloc((size_t)t->count * sizeof *y);
        const bool found = ckpt_find(c, STATE_EMA, name, &w) && w.count == t->count;
        EXPECT(found, "%s", name);
        if (found) {
            format_read_f64(f, t, 0, t->count, x, &e);
            ckpt_read_f64(c, &w, 0, w.count, y);
            expect_close(name, y, x, t->count, 1e-6);
            const double off = max_error(y, x, t->count, NULL);
            if (off > worst) worst = off;
        }
        free(x);
        free(y);
        free(name);
    }
    printf("    merged against peft: %.1e\n", worst);
    format_close(f);
    free(path);
    ckpt_close(c);
}

static void test_peft(struct comm *world)
{
    char *base = the_base(), *out = io_path("%s/plain-out", test_dir()),
         *merged = io_path("%s/peft-merged", test_dir());
    struct ckpt *c = ckpt_open(world, base, true);
    write_base(c);
    if (python("torch, safetensors.torch, peft", "peft", test_dir())) {
        static const char *const name[] = {"plain", "bin", "official", "bf16"};
        struct ckpt *k[4];
        for (int i = 0; i < 4; i++) {
            char *to = io_path("%s-out", name[i]);
            import_one(name[i], base, to, false, false);
            k[i] = open_one(world, to);
            EXPECT(ckpt_num_tensors(k[i]) == 64 && same_hash(k[i], k[0], STATE_LORA) == (i < 3),
                   "%s: other values", name[i]);
            free(to);
        }
        for (int i = 0; i < 4; i++) ckpt_close(k[i]);
        merge_adapter(&(struct merge_job){.base = base, .adapter = out, .out = merged});
        compare_merged(world);
    }
    ckpt_close(c);
    free(base);
    free(out);
    free(merged);
}

int main(int argc, char **argv)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMP_NUM_THREADS", "1", 0);
    const struct test tests[] = {
        {.name = "imported, merged, sampled, as typed", .run = test_program, .flags = TEST_SLOW},
        {.name = "files of torch and safetensors", .run = test_libraries, .flags = TEST_SLOW},
        {.name = "adapters of peft, merged as peft merges", .run = test_peft, .flags = TEST_SLOW},
    };
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
