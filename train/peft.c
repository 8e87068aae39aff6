#include "train/peft.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/io.h"
#include "core/log.h"

/* ---- adapter_config.json ---------------------------------------------------------------------*/
/* A value as text for a message; static, of the last call. */
static const char *shown(const json_t *v)
{
    static _Thread_local char out[80];
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);
    snprintf(out, sizeof out, "%s", text ? text : "?");
    free(text);
    return out;
}

/* null, false, 0 and what is empty mean that a feature is not used. */
static bool unused(const json_t *v)
{
    if (json_is_string(v)) return !*json_string_value(v);
    if (json_is_object(v)) return json_object_size(v) == 0;
    if (json_is_array(v)) return json_array_size(v) == 0;
    return !v || json_is_null(v) || json_is_false(v) ||
           (json_is_number(v) && json_number_value(v) == 0);
}

static const struct {
    const char *key, *why;
} refused[] = {
    {"use_rslora", "the scale would be alpha / sqrt(r)"},
    {"use_dora", "the weights would be normalised"},
    {"lora_bias", "adapters with a bias are not computed here"},
    {"fan_in_fan_out", "the weights of the base would be transposed"},
    {"rank_pattern", "all adapters have one rank here"},
    {"alpha_pattern", "all adapters have one alpha here"},
    {"modules_to_save", "an adapter checkpoint holds no whole modules"},
    {"layer_replication", "the base has other layers"},
    {"target_parameters", "only linears have adapters here"},
    {"trainable_token_indices", "only linears have adapters here"},
    {"alora_invocation_tokens", "adapters act on all tokens here"},
    {"use_qalora", "the term is another one"},
    {"use_bdlora", "the term is another one"},
    {"arrow_config", "the term is another one"},
    {"kasa_config", "the term is another one"},
    {"velora_config", "the term is another one"},
    {"monteclora_config", "the term is another one"},
};

static void require_plain(const struct peft *p)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const json_t *v = json_object_get(p->config, refused[i].key);
        if (!unused(v))
            err_stop(RC_CONFIG, "%s: %s: %s cannot be imported: %s", p->config_path, refused[i].key,
                     shown(v), refused[i].why);
    }
    const json_t *type = json_object_get(p->config, "peft_type"),
                 *bias = json_object_get(p->config, "bias"),
                 *init = json_object_get(p->config, "init_lora_weights");
    if (!unused(type) && (!json_is_string(type) || strcmp(json_string_value(type), "LORA")))
        err_stop(RC_CONFIG, "%s: peft_type: %s cannot be imported: it is no LoRA", p->config_path,
                 shown(type));
    if (!unused(bias) && (!json_is_string(bias) || strcmp(json_string_value(bias), "none")))
        err_stop(RC_CONFIG, "%s: bias: %s cannot be imported: biases are those of the base here",
                 p->config_path, shown(bias));
    const char *how = json_string_value(init);
    if (how && strcmp(how, "gaussian") && strcmp(how, "orthogonal") && strcmp(how, "eva"))
        err_stop(RC_CONFIG,
                 "%s: init_lora_weights: %s cannot be imported: this start changes the weights of "
                 "the base too; let peft convert the adapter to plain LoRA "
                 "(save_pretrained with path_initial_model_for_weight_conversion)",
                 p->config_path, shown(init));
}

static void read_config(struct peft *p, const char *dir)
{
    json_error_t why;
    size_t n;
    struct err e = {0};
    p->config_path = io_path("%s/adapter_config.json", dir);
    if (!io_exists(p->config_path))
        err_stop(RC_NOINPUT,
                 "%s is missing: give the folder that save_pretrained wrote, with "
                 "adapter_config.json and adapter_model.safetensors or adapter_model.bin",
                 p->config_path);
    p->text = io_read_file(p->config_path, &n, &e);
    err_raise(&e);
    p->config = json_loadb(p->text, n, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(p->config))
        err_stop(RC_DATA, "%s: line %d, column %d: %s", p->config_path, p->config ? 1 : why.line,
                 p->config ? 1 : why.column, p->config ? "is no object" : why.text);
    require_plain(p);
}

/* r, where the file has one, is that of the tensors. */
static void take_rank(struct peft *p)
{
    const json_t *r = json_object_get(p->config, "r");
    p->rank = p->pair[0].a->dim[0];
    if (r && !json_is_null(r) && (!json_is_integer(r) || json_integer_value(r) != p->rank))
        err_stop(RC_DATA, "%s: r: %s, but the tensors of %s have rank %lld", p->config_path,
                 shown(r), p->file, (long long)p->rank);
}

static void take_alpha(struct peft *p)
{
    const json_t *alpha = json_object_get(p->config, "lora_alpha");
    p->alpha = json_number_value(alpha);
    if (!alpha || json_is_null(alpha)) {
        p->alpha = 2 * (double)p->rank;
        log_info("%s has no lora_alpha: it is taken as 2 r = %g", p->config_path, p->alpha);
    } else if (!json_is_number(alpha) || !(p->alpha > 0) || !isfinite(p->alpha)) {
        err_stop(RC_DATA, "%s: lora_alpha: %s is no number above 0", p->config_path, shown(alpha));
    }
}

/* ---- targets ---------------------------------------------------------------------------------*/
/* peft's rule for lists: the path itself, or what follows one of its dots. */
static bool in_list(const json_t *list, const char *module)
{
    const size_t n = strlen(module);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *t = json_string_value(json_array_get(list, i));
        const size_t tail = t ? strlen(t) : 0;
        if (!tail || tail > n || strcmp(module + n - tail, t)) continue;
        if (tail == n || module[n - tail - 1] == '.') return true;
    }
    return false;
}

bool peft_has_targets(const struct peft *p)
{
    return json_is_array(json_object_get(p->config, "target_modules")) &&
           !json_is_string(json_object_get(p->config, "exclude_modules"));
}

/* layers_to_transform: a number or a list; null: all. */
static bool in_layers(const json_t *layers, const char *module)
{
    int block = -1;
    if (unused(layers) && !json_is_integer(layers)) return true;
    sscanf(module, "blocks.%d.", &block);
    if (json_is_integer(layers)) return json_integer_value(layers) == block;
    for (size_t i = 0; i < json_array_size(layers); i++)
        if (json_integer_value(json_array_get(layers, i)) == block) return true;
    return false;
}

bool peft_is_target(const struct peft *p, const char *module)
{
    return in_list(json_object_get(p->config, "target_modules"), module) &&
           in_layers(json_object_get(p->config, "layers_to_transform"), module) &&
           !in_list(json_object_get(p->config, "exclude_modules"), module);
}

/* The elements of a list are what they must be; else a pair would be judged by another rule. */
static void require_elements(const struct peft *p, const char *key, json_type type)
{
    const json_t *list = json_object_get(p->config, key);
    for (size_t i = 0; json_is_array(list) && i < json_array_size(list); i++)
        if (json_typeof(json_array_get(list, i)) != type)
            err_stop(RC_DATA, "%s: %s: %s is no %s", p->config_path, key,
                     shown(json_array_get(list, i)), type == JSON_STRING ? "text" : "whole number");
}

static void report_targets(const struct peft *p)
{
    const json_t *t = json_object_get(p->config, "target_modules");
    require_elements(p, "target_modules", JSON_STRING);
    require_elements(p, "exclude_modules", JSON_STRING);
    require_elements(p, "layers_to_transform", JSON_INTEGER);
    if (peft_has_targets(p)) return;
    if (json_is_string(t))
        log_info("%s: target_modules is one text and not a list: the tensors say what has adapters",
                 p->config_path);
    else if (json_is_array(t))
        log_info("%s: exclude_modules is a pattern: the tensors say what has adapters",
                 p->config_path);
    else if (t && !json_is_null(t))
        err_stop(RC_DATA, "%s: target_modules: %s is neither a list nor a text", p->config_path,
                 shown(t));
}

/* ---- tensors ---------------------------------------------------------------------------------*/
struct key {                      /* parts of one name */
    const char *module, *adapter; /* adapter NULL: none */
    size_t module_size, adapter_size;
    char half; /* 'A' or 'B' */
};

static bool parse(const char *name, struct key *k)
{
    static const char prefix[] = "base_model.model.", weight[] = "weight";
    if (strncmp(name, prefix, sizeof prefix - 1)) return false;
    k->module = name + sizeof prefix - 1;
    const char *at = strstr(k->module, ".lora_");
    if (!at || at == k->module || (at[6] != 'A' && at[6] != 'B') || at[7] != '.') return false;
    k->half = at[6];
    k->module_size = (size_t)(at - k->module);
    const char *rest = at + 8, *dot = strchr(rest, '.');
    k->adapter = dot ? rest : NULL;
    k->adapter_size = dot ? (size_t)(dot - rest) : 0;
    return dot != rest && strcmp(dot ? dot + 1 : rest, weight) == 0;
}

static struct key parse_or_stop(const struct peft *p, const struct format_tensor *t)
{
    struct key k;
    if (!parse(t->name, &k))
        err_stop(RC_DATA,
                 "%s: \"%s\" is no A or B of a linear (base_model.model.<module>.lora_A.weight, or "
                 "with an adapter's name in front of weight); it cannot be imported",
                 p->file, t->name);
    if (!format_is_float(t->dtype))
        err_stop(RC_DATA, "%s: \"%s\" is %s; adapters are F32, F16, BF16 or F64", p->file, t->name,
                 format_dtype_name(t->dtype));
    if (t->ndim != 2 || t->count == 0)
        err_stop(RC_DATA, "%s: \"%s\" has %d dimensions and %lld elements; a matrix is wanted",
                 p->file, t->name, t->ndim, (long long)t->count);
    return k;
}

/* All names are of one kind. */
static void require_style(struct peft *p, const struct key *k, const char *name, const char *first)
{
    if (name == first && k->adapter) {
        p->adapter = strndup(k->adapter, k->adapter_size);
        CHECK(p->adapter, "out of memory");
    }
    if (!p->adapter != !k->adapter ||
        (k->adapter && (strlen(p->adapter) != k->adapter_size ||
                        strncmp(p->adapter, k->adapter, k->adapter_size))))
        err_stop(RC_DATA,
                 "%s: \"%s\" and \"%s\" are names of two kinds or of two adapters; a file with one "
                 "adapter is wanted",
                 p->file, first, name);
}

static int by_module(const void *a, const void *b)
{
    return strcmp(((const struct peft_pair *)a)->module, ((const struct peft_pair *)b)->module);
}

const struct peft_pair *peft_find(const struct peft *p, const char *module)
{
    const struct peft_pair key = {.module = (char *)(uintptr_t)module};
    return bsearch(&key, p->pair, (size_t)p->num_pairs, sizeof key, by_module);
}

/* In the order of names the two of a pair are neighbours. */
static void find_pairs(struct peft *p)
{
    const int n = format_num_tensors(p->tensors);
    struct key *key = calloc((size_t)n + 2, sizeof *key); /* behind the last: none */
    p->pair = calloc((size_t)n + 1, sizeof *p->pair);
    CHECK(key && p->pair, "out of memory");
    for (int i = 0; i < n; i++) {
        const struct format_tensor *t = format_tensor_at(p->tensors, i);
        key[i] = parse_or_stop(p, t);
        require_style(p, &key[i], t->name, format_tensor_at(p->tensors, 0)->name);
    }
    for (int i = 0; i < n; i += 2) {
        const struct format_tensor *t = format_tensor_at(p->tensors, i);
        const struct key *a = &key[i], *b = &key[i + 1];
        if (a->half != 'A' || b->half != 'B' || a->module_size != b->module_size ||
            strncmp(a->module, b->module, a->module_size))
            err_stop(RC_DATA, "%s: \"%s\" has no %s", p->file, t->name,
                     a->half == 'A' ? "lora_B" : "lora_A");
        struct peft_pair *one = &p->pair[p->num_pairs++];
        *one = (struct peft_pair){strndup(a->module, a->module_size), t,
                                  format_tensor_at(p->tensors, i + 1)};
        CHECK(one->module, "out of memory");
    }
    free(key);
    if (p->num_pairs == 0) err_stop(RC_DATA, "%s holds no adapters", p->file);
    qsort(p->pair, (size_t)p->num_pairs, sizeof *p->pair, by_module);
}

static void require_rank(const struct peft *p)
{
    const struct format_tensor *first = p->pair[0].a;
    for (int i = 0; i < p->num_pairs; i++) {
        const struct format_tensor *a = p->pair[i].a, *b = p->pair[i].b;
        if (a->dim[0] != first->dim[0] || b->dim[1] != first->dim[0])
            err_stop(RC_DATA,
                     "%s: A [%lld,%lld] and B [%lld,%lld] of \"%s\" do not have the rank of \"%s\" "
                     "[%lld,%lld]; all adapters must have one",
                     p->file, (long long)a->dim[0], (long long)a->dim[1], (long long)b->dim[0],
                     (long long)b->dim[1], p->pair[i].module, first->name, (long long)first->dim[0],
                     (long long)first->dim[1]);
    }
}

static void open_tensors(struct peft *p, const char *dir)
{
    struct err e = {0};
    char *plain = io_path("%s/adapter_model.safetensors", dir),
         *torch = io_path("%s/adapter_model.bin", dir);
    const bool has_plain = io_exists(plain), has_torch = io_exists(torch);
    if (!has_plain && !has_torch)
        err_stop(RC_NOINPUT, "%s has neither adapter_model.safetensors nor adapter_model.bin", dir);
    if (has_plain && has_torch) log_info("%s is used; %s is not read", plain, torch);
    p->file = has_plain ? plain : torch;
    free(has_plain ? torch : plain);
    p->tensors = format_open(p->file, &e);
    err_raise(&e);
}

void peft_open(struct peft *p, const char *dir)
{
    *p = (struct peft){0};
    read_config(p, dir);
    open_tensors(p, dir);
    find_pairs(p);
    require_rank(p);
    take_rank(p);
    take_alpha(p);
    report_targets(p);
    if (p->adapter && strcmp(p->adapter, "default"))
        log_info("%s: its adapter is called \"%s\"", p->file, p->adapter);
}

void peft_close(struct peft *p)
{
    for (int i = 0; i < p->num_pairs; i++) free(p->pair[i].module);
    format_close(p->tensors);
    json_decref(p->config);
    char *texts[] = {p->config_path, p->file, p->text, p->adapter};
    for (int i = 0; i < 4; i++) free(texts[i]);
    free(p->pair);
    *p = (struct peft){0};
}
