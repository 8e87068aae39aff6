/* `osp data`: descriptions of clips -> filter -> decode -> encode -> data set file. */
#ifndef DATA_BUILD_H
#define DATA_BUILD_H
#include "data/filter.h"

struct data_build {
    const char *ann_txt_path; /* index file, or NULL and */
    const char *meta_path;    /* one JSON or CSV */
    const char *save_path;    /* the data set to write; its folder is made */
    const char *codec, *text_codec;
    struct filter_opts filter;
    int64_t window_stride;      /* resampled frames between windows of a clip; 0: one window */
    int64_t text_dim, text_len; /* of the model */
    double max_failure_rate;    /* broken clips, as a share of all, that are put up with */
    bool overwrite;             /* a data set that was made from something else */
    bool keep_existing;         /* take a data set that is there as it is, whatever made it */
    bool (*interrupted)(void);  /* NULL, or asked before every clip */
};
struct build_report {
    int64_t clips, samples, count[RULE_COUNT];
    int64_t cut; /* different captions that are longer than text_len */
    bool kept;   /* the file was there already, made from the same input */
};
/* A data set that is there, made from the same input, is left alone; one that was made from
 * something else (or is none at all) is RC_CONFIG with the keys that differ, unless overwrite.
 * Broken clips are counted, reported and left out, never replaced by others. False: e is filled and
 * save_path is as it was. report may be NULL.
 * One process at a time builds save_path (lock file save_path.lock): a second one waits, and then
 * finds the finished data set. */
bool build_dataset(const struct data_build *cfg, struct build_report *report, struct err *e);
#endif
