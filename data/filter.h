/* Which clips are used (docs/spec/sft.md 3.2), and which of their frames. Pure functions over what
 * the record says and what the container says. */
#ifndef DATA_FILTER_H
#define DATA_FILTER_H
#include "data/meta.h"
#include "data/video.h"

enum rule { /* in the order of the checks; the first hit rejects */
            RULE_ACCEPTED,
            RULE_NO_CAPTION,
            RULE_NO_RESOLUTION, /* given, but not positive */
            RULE_UNREADABLE,    /* the container cannot be opened */
            RULE_CONTRADICTION, /* the record says something else than the container */
            RULE_ASPECT_RATIO,
            RULE_TOO_SMALL,
            RULE_TOO_LONG,
            RULE_FPS_TOO_LOW,
            RULE_MOTION_TOO_LOW,
            RULE_MOTION_TOO_HIGH,
            RULE_TOO_SHORT,
            RULE_DECODE_FAILED, /* found later, while decoding */
            RULE_COUNT
};
const char *rule_name(enum rule r);
bool rule_is_failure(enum rule r); /* the clip is broken, as against unsuitable */

struct filter_opts { /* spec 5.2 */
    int64_t sample_height, sample_width, sample_num_frames;
    double train_fps;      /* 0 (null): sample_stride instead */
    int64_t sample_stride; /* 0 (null): 1 */
    double min_hxw, too_long_factor, max_h_div_w_ratio, min_h_div_w_ratio;
    double min_motion_value, max_motion_value;
};
struct clip_plan {
    double fps, step;
    int64_t start, frames; /* usable source frames [start, start+frames) */
    int64_t count;         /* frames after resampling: ceil(frames / step) */
    struct video_crop crop;
};
/* What needs no container: rules up to NO_RESOLUTION. */
enum rule filter_record(const struct clip_record *c, char detail[256]);
/* All other rules. detail: the reason with the numbers. */
enum rule filter_clip(const struct clip_record *c, const struct video_info *found,
                      const struct filter_opts *o, struct clip_plan *plan, char detail[256]);
/* Source frame of resampled frame k. */
int64_t filter_frame(const struct clip_plan *p, int64_t k);
#endif
