/* Bases, native adapters and folders of peft for the tests of `osp convert adapter`. */
#ifndef TESTS_IMPORT_CASE_H
#define TESTS_IMPORT_CASE_H
#include "parallel/checkpoint.h"
#include "tests/foreign.h"
enum { IMPORT_RANK = 2, IMPORT_MOST = 128 };
/* A run of one step with raw and averaged weights, test_dir()/name, made once; more: a "key=value"
 * or NULL. malloc'ed path. Blocks are 32 wide, their ffn 48; there are 4. */
char *base_of(const char *name, const char *more);
char *the_base(void);
/* Element i of A or B of a module: every type of a file holds it exactly. */
double value_of(const char *module, char half, int64_t i);
/* Adapters with these values, rank 2, alpha 6, as a LoRA run saves them: test_dir()/name. */
void make_native(const char *name, const char *base, enum state_kind kind,
                 const char *const *targets);

struct folder {
    int n, made; /* tensors in use; values to free */
    struct foreign t[IMPORT_MOST];
    char name[IMPORT_MOST][96];
    double *x[IMPORT_MOST];
};
struct foreign *add_tensor(struct folder *f, const char *name, enum format_dtype d, int64_t rows,
                           int64_t cols);
/* style: what stands in front of ".weight" */
void add_pair(struct folder *f, const char *module, int64_t out, int64_t in, const char *style,
              enum format_dtype d);
/* The official eight of every block. */
void add_official(struct folder *f, int blocks, const char *style, enum format_dtype d);
/* test_dir()/name with both files; json NULL: without the JSON. */
void write_folder(struct folder *f, const char *name, bool torch, const char *json);
void free_folder(struct folder *f);
extern const char import_json[]; /* a right one, r 2, lora_alpha 6, target_modules as one text */

/* test_dir()/name */
struct ckpt *open_one(struct comm *world, const char *name);
bool same_hash(struct ckpt *a, struct ckpt *b, enum state_kind kind);
/* The imported checkpoint has the bits, the base and the state of the native one, and says where it
 * comes from; targets: the description too. */
void expect_equal(struct comm *world, const char *name, const char *native, bool targets);
/* import_adapter from test_dir()/peft to test_dir()/out */
void import_one(const char *peft, const char *base, const char *out, bool raw, bool force);
#endif
