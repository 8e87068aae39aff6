/* What the libav files share (data only): error texts and the time limit. */
#ifndef DATA_VIDEO_AV_H
#define DATA_VIDEO_AV_H
#include <stdbool.h>

#include "core/err.h"
/* Sends libav's log into a buffer of this thread instead of stderr; call before any libav call. */
void av_quiet(void);
/* err_set with libav's error text and the last line of its log. */
void av_err(struct err *e, int code, int averror, const char *path, const char *doing);
/* AVIOInterruptCB: non-zero once the deadline (const double *, log_seconds) has passed. */
int av_overdue(void *deadline);
double av_deadline(void);
#endif
