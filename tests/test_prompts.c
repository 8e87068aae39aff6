/* Prompts of osp sample: what a file may hold, and what is said of it. */
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "data/codec.h"
#include "tests/check.h"
#include "train/prompts.h"

static char *said; /* during the last call */
static struct {
    struct prompts *p;
    const char *path;
    int64_t len;
    struct err e;
} job;

static void read_job(void *ignored)
{
    (void)ignored;
    prompts_read(job.p, job.path, &job.e);
    prompts_log_cut(job.p, "prompt_txt", text_codec_find("hash", &job.e), job.len);
}

/* Reads a file of this content, and says what is longer than len tokens. */
static struct err read_text(struct prompts *p, const char *text, size_t n, int64_t len)
{
    char *path = io_path("%s/prompts.txt", test_dir());
    job.p = p;
    job.path = path;
    job.len = len;
    job.e = (struct err){0};
    io_write_file(path, text, n, &job.e);
    CHECK(!job.e.code, "%s", job.e.msg);
    free(said);
    said = test_output(read_job, NULL);
    free(path);
    return job.e;
}

static void expect_refused(const char *text, size_t n, const char *why)
{
    struct prompts p;
    const struct err e = read_text(&p, text, n, 99);
    EXPECT(e.code == RC_DATA && strstr(e.msg, why), "code %d: %s; expected %s", e.code, e.msg, why);
    prompts_free(&p);
}

static void test_lines(struct comm *world)
{
    (void)world;
    struct prompts p;
    const char text[] = "\xef\xbb\xbf  a\tdog\r\n\n \t\nein H\xc3\xbcndchen \nlast";
    struct err e = read_text(&p, text, sizeof text - 1, 99);
    EXPECT(!e.code && p.n == 5, "%d prompts: %s", p.n, e.msg);
    if (p.n == 5)
        EXPECT(!strcmp(p.text[0], "a\tdog") && !*p.text[1] && !*p.text[2] &&
                   !strcmp(p.text[3], "ein H\xc3\xbcndchen") && !strcmp(p.text[4], "last"),
               "\"%s\" \"%s\" \"%s\"", p.text[0], p.text[3], p.text[4]);
    EXPECT(strstr(said, "prompts.txt: 2 empty lines are empty prompts\n"), "%s", said);
    prompts_free(&p);
    e = read_text(&p, "a\nb\n", 4, 99);
    EXPECT(!e.code && p.n == 2 && !*said, "%s%s", e.msg, said);
    prompts_free(&p);
    expect_refused("good\na caf\xe9\n", 12, "prompts.txt:2: the line is not UTF-8");
    expect_refused("good\n\na \x1b[31mb\n", 14,
                   "prompts.txt:3: the line holds a control character");
    expect_refused("a \xc2\x9b b\n", 7, "prompts.txt:1: the line holds a control character");
    expect_refused("good\na\0b\n", 9, "holds a zero byte");
    expect_refused("\xef\xbb\xbf", 3, "is empty");
    struct err folder = {0};
    prompts_read(&p, test_dir(), &folder);
    EXPECT(folder.code == RC_NOINPUT && strstr(folder.msg, "prompt_txt: ") &&
               strstr(folder.msg, "is a folder"),
           "%d %s", folder.code, folder.msg);
}

static void test_cut(struct comm *world)
{
    (void)world;
    struct prompts p;
    const char text[] =
        "one two\n\none two three\na, b; c d\nx y z\n"; /* with end marks 3 1 4 5 4 */
    struct err e = read_text(&p, text, sizeof text - 1, 4);
    EXPECT(!e.code && strstr(said, "prompt_txt: 1 of 5 prompts is longer than 4 tokens and is cut: "
                                   "line 4 (5 tokens)\n"),
           "%s%s", e.msg, said);
    prompts_free(&p);
    e = read_text(&p, text, sizeof text - 1, 3);
    EXPECT(strstr(said, "3 of 5 prompts are longer than 3 tokens and are cut: line 3 (4 tokens), "
                        "line 4 (5 tokens), line 5 (4 tokens)\n"),
           "%s%s", e.msg, said);
    prompts_free(&p);
    e = read_text(&p, text, sizeof text - 1, 5);
    EXPECT(!e.code && !strstr(said, "cut"), "%s", said);
    prompts_free(&p);
    e = read_text(&p, "a\nb\nc\nd\ne\nf\ng\nh\ni\n", 18, 1);
    EXPECT(strstr(said, "9 of 9 prompts") && strstr(said, "line 8 (2 tokens), ...\n"), "%s", said);
    prompts_free(&p);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        {"a file of prompts: byte order mark, empty lines, what is refused", test_lines, {0}, 0},
        {"prompts that are cut are named with their lines", test_cut, {0}, 0}};
    return test_main(argc, argv, tests, sizeof tests / sizeof *tests);
}
