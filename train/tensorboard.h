/* TensorBoard event files, written by hand: a record is length, masked CRC-32C of the length,
 * protobuf bytes, masked CRC-32C of the bytes. Every record goes out in one write, so a reader
 * that follows the file sees whole records (and tolerates a cut last one). One new file per start;
 * a purge record hides what earlier files hold from a step on, or curves would double at a resume.
 * Wall times are seconds since 1970 and come from the caller. */
#ifndef TRAIN_TENSORBOARD_H
#define TRAIN_TENSORBOARD_H
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
struct tensorboard;
/* A new file in dir (made if it is not there). purge_step -1: nothing before it is hidden. */
struct tensorboard *tensorboard_open(const char *dir, double wall, int64_t purge_step,
                                     struct err *e);
/* n scalars of one step, in one record. */
void tensorboard_scalars(struct tensorboard *t, double wall, int64_t step, const char *const *tag,
                         const double *value, int n, struct err *e);
/* Shown under Text as markdown; the tag should end in "/text_summary". */
void tensorboard_text(struct tensorboard *t, double wall, int64_t step, const char *tag,
                      const char *text, struct err *e);
/* png: the bytes of an RGB PNG file. */
void tensorboard_image(struct tensorboard *t, double wall, int64_t step, const char *tag,
                       int64_t height, int64_t width, const void *png, size_t bytes, struct err *e);
const char *tensorboard_path(const struct tensorboard *t);
void tensorboard_close(struct tensorboard *t);
#endif
