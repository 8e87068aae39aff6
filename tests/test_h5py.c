/* A checkpoint read by h5py, the library that users have: every tensor whole, by its official name.
 * Needs python with h5py (build/venv-test, or python3). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "tests/check.h"
#include "tests/train_case.h"

static const char *python(void)
{
    static const char *const list[] = {"build/venv-test/bin/python", "python3"};
    for (int i = 0; i < 2; i++) {
        char *cmd = io_path("%s -c 'import h5py, numpy' >/dev/null 2>&1", list[i]);
        const int rc = system(cmd);
        free(cmd);
        if (rc == 0) return list[i];
    }
    return NULL;
}

static void save_rank(struct comm *world, void *arg)
{
    struct train_case *c = calloc(1, sizeof *c);
    const char *extra[] = {arg, "device=ref", NULL};
    train_case_open(c, world, extra);
    double loss;
    train_case_steps(c, 1, &loss);
    resume_save(&c->t, &c->l);
    train_case_close(c);
    free(c);
}

static void test_h5py(struct comm *world)
{
    (void)world;
    const char *py = python();
    if (!py) {
        test_skip("no python with h5py (pip install h5py)");
        return;
    }
    char *out = io_path("output_dir=%s/h5py", test_dir());
    comm_thread_run(4, save_rank, out);
    char *script = io_path("%s/read.py", test_dir());
    static const char text[] =
        "import h5py, json, sys, numpy as np\n"
        "d = sys.argv[1]\n"
        "m = json.load(open(d + '/manifest.json'))\n"
        "f = h5py.File(d + '/state.h5', 'r')\n"
        "n = 0\n"
        "for t in m['tensors']:\n"
        "    a = f[t['kind']][t['name']]\n"
        "    assert list(a.shape) == t['shape'], (t['name'], a.shape)\n"
        "    whole = np.empty(a.size, a.dtype)\n"
        "    for p in t['pieces']:\n"
        "        r = h5py.File(d + '/' + p['file'], 'r')[t['kind']][t['name']]\n"
        "        assert r.attrs['first'] == p['first'] and r.shape[0] == p['count']\n"
        "        whole[p['first']:p['first'] + p['count']] = r[...]\n"
        "    assert np.array_equal(a[...].ravel(), whole), t['name']\n"
        "    assert np.isfinite(whole).all()\n"
        "    n += 1\n"
        "assert n == 4 * (27 * 4 + 15), n\n"
        "print('%d tensors' % n)\n";
    struct err e = {0};
    io_write_file(script, text, sizeof text - 1, &e);
    char *cmd = io_path("%s %s %s/h5py/checkpoints/iter_000000001 2>&1", py, script, test_dir());
    char said[2048];
    EXPECT(test_command(cmd, said, sizeof said) == 0, "h5py: %s", said);
    free(cmd);
    free(script);
    free(out);
}

int main(int argc, char **argv)
{
    const struct test tests[] = {
        {.name = "h5py reads every tensor of a checkpoint of 4 ranks", .run = test_h5py}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
