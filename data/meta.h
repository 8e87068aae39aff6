/* Descriptions of clips: the official meta JSON (docs/spec/sft.md 3.1) and CSV
 * (path,text[,num_frames,height,width,fps]; RFC 4180, UTF-8 with or without a byte order mark).
 * A file that does not parse, or a record of the wrong form, is an error that names file, line and
 * column, or record and key. What a record says is judged later, by data/filter.h. */
#ifndef DATA_META_H
#define DATA_META_H
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "data/video.h"
struct clip_record {
    char *path; /* as written */
    char *file; /* joined to the root */
    char **cap; /* cleaned (data/text.h), none empty */
    int64_t num_cap;
    bool has_size, has_fps, has_frames, has_cut, has_crop;
    int64_t height, width, num_frames;
    int64_t cut[2]; /* source frames [first, end) */
    double fps, motion;
    struct video_crop crop;
    int64_t record; /* number in its file, from 0 */
};
struct clip_list {
    struct clip_record *clip;
    int64_t n, room;
    int64_t empty_captions; /* left out, for the report */
};
/* Appends the records of a .json or .csv file; root NULL: the folder of the file. */
bool meta_read(struct clip_list *out, const char *path, const char *root, struct err *e);
/* Appends all corpora of an index file: lines "videos_root,meta_file"; relative names are relative
 * to the folder of the index. */
bool meta_read_index(struct clip_list *out, const char *path, struct err *e);
void meta_free(struct clip_list *l);

/* For the readers of the formats. */
enum { META_MAX_TEXT = 16384, META_MAX_PATH = 4096, META_MAX_CAPTIONS = 1024 };
struct clip_record *meta_new_clip(struct clip_list *l, const char *path, const char *root);
/* False when it is too long or not UTF-8. An empty one is counted and left out. */
bool meta_add_caption(struct clip_list *l, struct clip_record *c, const char *text);
bool meta_read_csv(struct clip_list *out, const char *path, const char *root, struct err *e);
#endif
