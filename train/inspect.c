/* Verb inspect: what is in a checkpoint. One process, no MPI. */
#include "train/inspect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "core/io.h"
#include "model/config.h"
#include "train/args.h"
#include "train/verbs.h"

static const char usage[] = "osp inspect RUN|CHECKPOINT [--verify] [--print-config] [--json]\n"
                            "What is in a checkpoint (of a run folder: in the newest one). "
                            "--verify compares every byte with\n"
                            "the checksums of the manifest; damage ends with exit code 65.";

static void time_of(const char *folder, char *out, size_t size)
{
    char *path = io_path("%s/manifest.json", folder);
    struct stat st;
    struct tm utc;
    snprintf(out, size, "unknown");
    if (stat(path, &st) == 0 && gmtime_r(&st.st_mtime, &utc))
        strftime(out, size, "%Y-%m-%dT%H:%M:%SZ", &utc);
    free(path);
}

static bool has_kind(const struct tensor_scan *s, int n, int kind)
{
    for (int i = 0; i < n; i++)
        if ((int)s[i].t.kind == kind) return true;
    return false;
}

/* A member of an object as text; NULL when it is not there. malloc'ed. */
static char *member(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (json_is_string(v)) return io_path("%s", json_string_value(v));
    if (json_is_integer(v)) return io_path("%lld", (long long)json_integer_value(v));
    if (json_is_real(v)) return io_path("%.6g", json_real_value(v));
    return NULL;
}

/* One row of the members that o has, after `first`; no row when there is nothing to say. */
static void print_row(FILE *out, const char *title, const char *first, const json_t *o,
                      const char *const *key, int n)
{
    bool any = first != NULL;
    if (first) fprintf(out, "%-10s %s", title, first);
    for (int i = 0; i < n; i++) {
        char *v = member(o, key[i]);
        if (!v) continue;
        const char *short_name = strrchr(key[i], '.') ? strrchr(key[i], '.') + 1 : key[i];
        if (!any) fprintf(out, "%-10s ", title);
        fprintf(out, "%s%s %s", any ? ", " : "", short_name, v);
        any = true;
        free(v);
    }
    if (any) fprintf(out, "\n");
}

static void print_sparsity(FILE *out, const json_t *meta)
{
    static const char *const keys[] = {"model_config.sparse_ratio", "model_config.num_full_blocks",
                                       "model_config.skiparse_dim", "model_config.num_layers",
                                       "model_config.dim"};
    const json_t *s = json_object_get(meta, "structure"),
                 *type = json_object_get(s, "model_config.skiparse_model_type");
    print_row(out, "blocks",
              !type                                           ? NULL
              : json_integer_value(type) == SKIPARSE_DUAL_END ? "dual_end"
                                                              : "full",
              s, keys, sizeof keys / sizeof *keys);
}

/* Weights that something was made for, or of, as far as they are known: "PATH, step 3, ema
 * weights" and their hash; first: what stands before them. */
static void print_source(FILE *out, const char *title, const char *first, const json_t *o)
{
    char *path = member(o, "path"), *step = member(o, "step"), *kind = member(o, "kind"),
         *hash = member(o, "sha256");
    if (first || path) {
        fprintf(out, "%-10s %s%s%s", title, first ? first : "", first && path ? ", from " : "",
                path ? path : "");
        if (step) fprintf(out, ", step %s", step);
        if (kind) fprintf(out, ", %s weights", kind);
        fprintf(out, "\n");
    }
    if (hash) fprintf(out, "%-10s SHA-256 %s\n", "", hash);
    free(path);
    free(step);
    free(kind);
    free(hash);
}

/* Of an adapter checkpoint: what it is and what it was made for. */
static void print_lora(FILE *out, const json_t *meta)
{
    static const char *const keys[] = {"rank", "alpha", "scale", "dropout"}, *const rl[] = {
                                                                                 "epoch",
                                                                                 "evaluated",
                                                                                 "seconds"};
    const json_t *l = json_object_get(meta, "lora"), *targets = json_object_get(l, "targets");
    print_row(out, "training", NULL, json_object_get(meta, "rl"), rl, 3);
    print_row(out, "adapters", NULL, l, keys, 4);
    if (json_array_size(targets)) fprintf(out, "%-10s", "targets");
    for (size_t i = 0; i < json_array_size(targets); i++)
        fprintf(out, " %s", json_string_value(json_array_get(targets, i)));
    if (json_array_size(targets)) fprintf(out, "\n");
    print_source(out, "base", NULL, json_object_get(meta, "base"));
}

/* Of a checkpoint that was made of others: by what, of what. */
static void print_provenance(FILE *out, const json_t *meta)
{
    const json_t *p = json_object_get(meta, "provenance"), *a = json_object_get(p, "adapter");
    char *by = member(p, "made_by");
    print_source(out, "made by", by, a ? a : p);
    print_source(out, "from base", NULL, json_object_get(p, "base"));
    free(by);
}

static void print_head(FILE *out, struct ckpt *c, const char *when, bool verified)
{
    static const char *const layout[] = {"ranks", "fsdp_size", "skiparse_sp_size", "sp_size"};
    static const char *const state[] = {"cursor", "adam_steps", "ema_updates", "skipped",
                                        "seconds"};
    static const char *const clip[] = {"mean", "var", "limit", "decay", "init_max"};
    static const char *const stage[] = {"stage"};
    const json_t *meta = ckpt_meta(c), *s = json_object_get(meta, "state");
    fprintf(out, "checkpoint %s\nstep       %lld\nwritten    %s\n", ckpt_path(c),
            (long long)ckpt_step(c), when);
    print_row(out, "layout", NULL, json_object_get(meta, "layout"), layout, 4);
    print_row(out, "run", NULL, meta, stage, 1);
    print_lora(out, meta);
    print_provenance(out, meta);
    print_sparsity(out, meta);
    print_row(out, "state", NULL, s, state, 5);
    print_row(out, "clip", NULL, json_object_get(s, "clip"), clip, 5);
    fprintf(out, "checksums  %s\n",
            verified ? "every byte of every file matches" : "not compared (--verify)");
}

static void print_hashes(FILE *out, const struct tensor_scan *s, int n)
{
    for (int k = 0; k < STATE_KINDS; k++) {
        if (!has_kind(s, n, k)) continue;
        char hex[65], label[32];
        int64_t tensors = 0, elements = 0, bad = 0;
        for (int i = 0; i < n; i++) {
            if ((int)s[i].t.kind != k) continue;
            tensors++;
            elements += s[i].t.count;
            bad += s[i].not_finite;
        }
        scan_hash(s, n, (enum state_kind)k, hex);
        snprintf(label, sizeof label, "%s hash",
                 k == STATE_MASTER ? "base" : ckpt_kind_name((enum state_kind)k));
        fprintf(out, "%-12s %s  (%lld tensors, %lld elements", label, hex, (long long)tensors,
                (long long)elements);
        if (bad) fprintf(out, ", %lld NOT FINITE", (long long)bad);
        fprintf(out, ")\n");
    }
}

static void print_table(FILE *out, const struct tensor_scan *s, int n)
{
    int width = 4;
    for (int i = 0; i < n; i++)
        width = (int)strlen(s[i].t.name) > width ? (int)strlen(s[i].t.name) : width;
    fprintf(out, "\n%-8s %-*s %14s %-5s %12s %12s %12s\n", "kind", width, "name", "shape", "dtype",
            "L2", "max |x|", "mean");
    for (int i = 0; i < n; i++) {
        char shape[96];
        shape_string(shape, sizeof shape, &s[i].t);
        fprintf(out, "%-8s %-*s %14s %-5s %12.5g %12.5g %12.4g", ckpt_kind_name(s[i].t.kind), width,
                s[i].t.name, shape, dtype_name(s[i].t.dtype), s[i].l2, s[i].max, s[i].mean);
        if (s[i].not_finite) fprintf(out, "  %lld not finite", (long long)s[i].not_finite);
        fprintf(out, "\n");
    }
}

static json_t *tensor_json(const struct tensor_scan *s)
{
    char crc[16];
    json_t *shape = json_array();
    for (int k = 0; k < s->t.ndim; k++) json_array_append_new(shape, json_integer(s->t.dim[k]));
    snprintf(crc, sizeof crc, "%08x", s->crc);
    return json_pack("{s:s, s:s, s:o, s:s, s:f, s:f, s:f, s:I, s:s}", "kind",
                     ckpt_kind_name(s->t.kind), "name", s->t.name, "shape", shape, "dtype",
                     dtype_name(s->t.dtype), "l2", s->l2, "max", s->max, "mean", s->mean,
                     "not_finite", (json_int_t)s->not_finite, "crc", crc);
}

static void print_json(FILE *out, struct ckpt *c, const char *when, struct inspect_opts o,
                       const struct tensor_scan *s, int n)
{
    json_t *hashes = json_object(), *tensors = json_array(), *meta = json_copy(ckpt_meta(c));
    if (!o.config) json_object_del(meta, "config");
    for (int k = 0; k < STATE_KINDS; k++) {
        if (!has_kind(s, n, k)) continue;
        char hex[65];
        scan_hash(s, n, (enum state_kind)k, hex);
        json_object_set_new(hashes, k == STATE_MASTER ? "base" : ckpt_kind_name((enum state_kind)k),
                            json_string(hex));
    }
    for (int i = 0; i < n; i++) json_array_append_new(tensors, tensor_json(&s[i]));
    json_t *all = json_pack("{s:s, s:I, s:s, s:b, s:o, s:o, s:o}", "path", ckpt_path(c), "step",
                            (json_int_t)ckpt_step(c), "written", when, "verified", (int)o.verify,
                            "meta", meta, "hashes", hashes, "tensors", tensors);
    CHECK(all && json_dumpf(all, out, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) == 0,
          "the description cannot be encoded");
    fprintf(out, "\n");
    json_decref(all);
}

int inspect_checkpoint(const char *path, struct inspect_opts o, FILE *out)
{
    struct comm *world = comm_self(NULL);
    struct ckpt *c = ckpt_open(world, path, o.verify);
    char when[64];
    int n;
    time_of(ckpt_path(c), when, sizeof when);
    struct tensor_scan *s = scan_checkpoint(c, &n);
    if (o.json) {
        print_json(out, c, when, o, s, n);
    } else {
        print_head(out, c, when, o.verify);
        print_hashes(out, s, n);
        print_table(out, s, n);
        const char *config = json_string_value(json_object_get(ckpt_meta(c), "config"));
        if (o.config) fprintf(out, "\n%s\n", config ? config : "(the checkpoint has no config)");
    }
    free(s);
    ckpt_close(c);
    comm_free(world);
    return RC_OK;
}

int verb_inspect(int argc, char **argv)
{
    struct args a;
    args_parse(&a, argc, argv, usage);
    if (!a.config || a.num_rest || a.num_sets) err_stop(RC_USAGE, "%s", usage);
    const struct inspect_opts o = {a.verify, a.json, a.print_config};
    const int rc = inspect_checkpoint(a.config, o, stdout);
    args_free(&a);
    return rc;
}
