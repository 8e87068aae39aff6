/* Log lines: one write(2) per line, so that lines of several ranks never mix.
 * Level below the threshold is dropped; ranks other than 0 print warnings only (log_identify), and
 * not those that every rank knows (log_warn_all). */
#ifndef CORE_LOG_H
#define CORE_LOG_H
enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN_ALL, LOG_WARN };
void log_identify(int rank, int size);
void log_set_level(enum log_level level);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_warn_all(...) log_line(LOG_WARN_ALL, __VA_ARGS__) /* said by rank 0 for all */
/* A line that replaces the one before on a terminal, and is a plain line elsewhere. */
void log_progress(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
double log_seconds(void); /* monotonic clock */
#endif
