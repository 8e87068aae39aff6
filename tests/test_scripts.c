/* The scripts that guard the tree find what is planted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/io.h"
#include "tests/check.h"

/* Runs a command; out gets what it printed. Returns the exit status. */
static int run(char *out, size_t size, const char *cmd)
{
    char *both = io_path("{ %s; } 2>&1", cmd);
    const int rc = test_command(both, out, size);
    free(both);
    return rc;
}

/* tests/<tree>/<name> with this content, in the test's own folder. */
static void plant(const char *tree, const char *name, const char *text)
{
    char *path = io_path("%s/%s/%s", test_dir(), tree, name), *dir = io_path("%s", path);
    *strrchr(dir, '/') = 0;
    io_mkdir(dir, NULL);
    io_write_file(path, text, strlen(text), NULL);
    chmod(path, 0755);
    free(dir);
    free(path);
}

static int check(const char *script, const char *tree, char *out, size_t size)
{
    char *cmd = io_path("scripts/%s %s/%s", script, test_dir(), tree);
    const int rc = run(out, size, cmd);
    free(cmd);
    return rc;
}

static void test_layers(struct comm *world)
{
    (void)world;
    char out[8192];
    EXPECT(run(out, sizeof out, "scripts/check_layers.sh") == 0, "this tree: %s", out);
    plant("good", "core/a.c", "#include \"core/a.h\"\n#include <stdio.h>\n");
    plant("good", "core/config_x.c", "#include <yaml.h>\n");
    plant("good", "model/a.c", "#include \"core/a.h\"\n#include \"parallel/mesh.h\"\n");
    plant("good", "train/settings.h", "#include \"rl/config.h\"\n#include \"model/a.h\"\n");
    plant("good", "rl/a.c", "#include \"train/settings.h\"\n#include \"data/a.h\"\n");
    EXPECT(check("check_layers.sh", "good", out, sizeof out) == 0, "%s", out);
    static const struct {
        const char *file, *include, *says;
    } bad[] = {
        {"core/a.c", "\"model/dit.h\"", "core/a.c:1: core may not include \"model/dit.h\""},
        {"core/b.c", "<mpi.h>", "core/b.c:1: core may not include <mpi.h>"},
        {"core/c.c", "<yaml.h>", "only core/config*.c, core/yaml_*.c may include <yaml.h>"},
        {"core/d.c", "\"core/ref/x.h\"", "core/d.c:1: \"core/ref/x.h\" is private to core/ref"},
        {"core/cpu/e.c", "\"core/ref/x.h\"", "core/cpu/e.c:1: "},
        {"parallel/a.c", "\"model/dit.h\"", "parallel may not include \"model/dit.h\""},
        {"model/a.c", "\"parallel/fsdp.h\"", "model may not include \"parallel/fsdp.h\""},
        {"optim/a.c", "\"model/dit.h\"", "optim may not include \"model/dit.h\""},
        {"data/a.c", "\"train/settings.h\"", "data may not include \"train/settings.h\""},
        {"train/a.c", "\"rl/grpo.h\"", "train may not include \"rl/grpo.h\""},
        {"train/b.c", "<cuda_runtime.h>", "<cuda_runtime.h> belongs into core/cuda/"},
        {"rl/a.c", "\"train/trainer.h\"", "rl may not include \"train/trainer.h\""},
        {"model/b.c", "\"dit.h\"", "\"dit.h\": write the folder too"},
    };
    const int n = sizeof bad / sizeof *bad;
    for (int i = 0; i < n; i++) {
        char line[128];
        snprintf(line, sizeof line, "#include %s\n", bad[i].include);
        plant("bad", bad[i].file, line);
    }
    EXPECT(check("check_layers.sh", "bad", out, sizeof out) == 1, "%s", out);
    for (int i = 0; i < n; i++) EXPECT(strstr(out, bad[i].says), "%s: %s", bad[i].says, out);
    EXPECT(strstr(out, "13 wrong includes"), "%s", out);
}

static void test_style(struct comm *world)
{
    (void)world;
    char out[8192], text[30000] = "int f(void);\nint f(void)\n{\n";
    plant("style", ".clang-format", "DisableFormat: true\n");
    plant("style", "a.c", "int x;\n");
    EXPECT(check("check_style.sh", "style", out, sizeof out) == 0, "%s", out);
    plant("style", "tab.c", "int x;\n\tint y;\n");
    plant("style", "wide.c",
          "int x; /* 01234567890123456789012345678901234567890123456789"
          "01234567890123456789012345678901234567890123456789 */\n");
    plant("style", "todo.c", "/* TODO: later */\n/* TODO(anna): later */\n");
    for (int i = 0; i < 81; i++) strcat(text, "    f();\n");
    strcat(text, "}\n");
    for (int i = 0; i < 520; i++) strcat(text, "int x;\n");
    plant("style", "long.c", text);
    EXPECT(check("check_style.sh", "style", out, sizeof out) == 1, "%s", out);
    EXPECT(strstr(out, "tab.c:2: tab"), "%s", out);
    EXPECT(strstr(out, "wide.c:1: 113 columns, at most 100"), "%s", out);
    EXPECT(strstr(out, "todo.c:1: TO"
                       "DO without a name") &&
               !strstr(out, "todo.c:2"),
           "%s", out);
    EXPECT(strstr(out, "long.c:85: function of 81 lines, at most 80"), "%s", out);
    EXPECT(strstr(out, "long.c: 605 lines, at most 600"), "%s", out);
}

/* A system made of three small scripts: what is installed is the file `db`. */
static int install(char *out, size_t size, const char *missing, const char *id, const char *apt)
{
    char *db = io_path("%s/fake/db", test_dir()), *cmd;
    cmd = io_path("scripts/install_deps.sh --list | grep -vxE '%s' > %s", missing, db);
    run(out, size, cmd);
    free(cmd);
    plant("fake", "id", id);
    plant("fake", "apt-get", apt);
    cmd = io_path("DB=%s PATH=%s/fake:$PATH scripts/install_deps.sh", db, test_dir());
    const int rc = run(out, size, cmd);
    free(cmd);
    free(db);
    return rc;
}

static void test_deps(struct comm *world)
{
    (void)world;
    char out[8192];
    static const char *const root = "#!/bin/sh\necho 0\n", *const user = "#!/bin/sh\necho 1000\n";
    static const char *const nothing = "#!/bin/sh\nexit 0\n", *const fails =
                                                                  "#!/bin/sh\nexit 100\n";
    plant("fake", "sudo", "#!/bin/sh\nexit 1\n");
    plant("fake", "dpkg-query",
          "#!/bin/sh\nshift 2\n"
          "for p; do grep -qx \"$p\" $DB && echo \"$p installed\"; done\nexit 1\n");
    EXPECT(install(out, sizeof out, "none", user, nothing) == 0 && !*out, "%s", out);
    EXPECT(install(out, sizeof out, "libyaml-dev|libdnnl-dev", user, nothing) == 1, "%s", out);
    EXPECT(strstr(out, "missing packages: libyaml-dev libdnnl-dev\n"), "%s", out);
    EXPECT(strstr(out, "--no-install-recommends libyaml-dev libdnnl-dev\n"), "%s", out);
    EXPECT(strstr(out, "required: libyaml-dev\n"), "%s", out);
    EXPECT(install(out, sizeof out, "libdnnl-dev", user, nothing) == 0, "%s", out);
    EXPECT(strstr(out, "these are optional"), "%s", out);
    EXPECT(install(out, sizeof out, "libyaml-dev", root, fails) == 1, "%s", out);
    EXPECT(strstr(out, "still missing: libyaml-dev"), "%s", out);
    EXPECT(install(out, sizeof out, "libyaml-dev", root,
                   "#!/bin/sh\ncase \"$*\" in *install*) echo libyaml-dev >> $DB;; esac\n") == 0,
           "%s", out);
    EXPECT(strstr(out, "installed: libyaml-dev\n"), "%s", out);
}

int main(int argc, char **argv)
{
    const struct test t[] = {
        {.name = "check_layers finds every kind of wrong include", .run = test_layers},
        {.name = "check_style finds tabs, width, size and TO"
                 "DO",
         .run = test_style},
        {.name = "install_deps says what is missing and how to get it", .run = test_deps},
    };
    return test_main(argc, argv, t, sizeof t / sizeof *t);
}
