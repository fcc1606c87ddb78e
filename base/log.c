/* Progress for people and JSON lines for programs. A line is put together before it is written, so that lines
 * of different processes do not mix, and a JSON line is flushed at once, so that a killed job leaves what it
 * did. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BAR_CELLS = 20, LINE_BYTES = 4096, TIME_BYTES = 32 };
static const double bar_interval_s = 0.25, line_interval_s = 5.0;

double decant_clock_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* What every JSON line begins with. */
static const char line_beginning[] = "{\"time_s\":";

/* Has the file anything in it that is no earlier log? */
static bool is_foreign(const char *path)
{
    enum { LENGTH = sizeof line_beginning - 1 };
    char found[LENGTH];
    struct stat about;
    if (stat(path, &about) != 0 || !S_ISREG(about.st_mode) || about.st_size == 0)
        return false;
    FILE *file = fopen(path, "re");
    bool is_log = file && fread(found, 1, LENGTH, file) == LENGTH && memcmp(found, line_beginning, LENGTH) == 0;
    if (file)
        fclose(file);
    return !is_log;
}

decant_status decant_log_open(int rank, bool quiet, const char *json_path, decant_log *log, decant_error *err)
{
    memset(log, 0, sizeof *log);
    log->rank = rank;
    log->quiet = quiet;
    log->terminal = isatty(STDERR_FILENO);
    log->start_s = log->stage_start_s = log->last_line_s = decant_clock_s();
    if (rank != 0 || !json_path)
        return DECANT_OK;
    if (is_foreign(json_path))
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "%s: exists and is no log, so it is not replaced; take another --log", json_path);
    log->json = fopen(json_path, "ae");
    if (!log->json)
        return DECANT_SYSTEM_ERROR(err, DECANT_ERROR_DISK, "%s: the log cannot be written", json_path);
    return DECANT_OK;
}

/* Ends the bar's line, so that the next output starts on its own. */
static void clear_bar(decant_log *log)
{
    if (log->bar_shown)
        fputs("\r\033[K", stderr);
    log->bar_shown = false;
}

void decant_log_close(decant_log *log)
{
    clear_bar(log);
    if (log->json)
        fclose(log->json);
    log->json = NULL;
}

void decant_log_say(decant_log *log, const char *format, ...)
{
    if (log->rank != 0 || log->quiet)
        return;
    char line[LINE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    clear_bar(log);
    fprintf(stderr, "decant: %s\n", line);
}

void decant_log_stage(decant_log *log, const char *stage)
{
    snprintf(log->stage, sizeof log->stage, "%s", stage);
    log->stage_start_s = log->last_line_s = decant_clock_s();
}

/* "0:41", "12:05", "1:02:03" */
static void format_time(double seconds, char text[TIME_BYTES])
{
    const double longest_s = 3600e4;
    long long whole = seconds < 0 ? 0 : (long long)((seconds < longest_s ? seconds : longest_s) + 0.5);
    if (whole >= 3600)
        snprintf(text, TIME_BYTES, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(text, TIME_BYTES, "%lld:%02lld", whole / 60, whole % 60);
}

/* What is done, and the time left or taken: "12/32 sequences  0:41 left". */
static void format_progress(const decant_log *log, int64_t done, int64_t total, const char *unit, char *text,
                            size_t size)
{
    char time[TIME_BYTES];
    double elapsed = decant_clock_s() - log->stage_start_s;
    bool finished = done >= total;
    if (!finished && done <= 0) {
        snprintf(text, size, "%lld/%lld %s", (long long)done, (long long)total, unit);
        return;
    }
    format_time(finished ? elapsed : elapsed * (double)(total - done) / (double)done, time);
    snprintf(text, size, "%lld/%lld %s  %s %s", (long long)done, (long long)total, unit, time,
             finished ? "taken" : "left");
}

void decant_log_progress(decant_log *log, int64_t done, int64_t total, const char *unit)
{
    double now = decant_clock_s();
    if (log->rank != 0 || log->quiet)
        return;
    if (done < total && now - log->last_line_s < (log->terminal ? bar_interval_s : line_interval_s))
        return;
    log->last_line_s = now;
    char text[256];
    format_progress(log, done, total, unit, text, sizeof text);
    if (!log->terminal) {
        fprintf(stderr, "decant: %s  %s\n", log->stage, text);
        return;
    }
    char bar[BAR_CELLS + 1];
    int64_t filled =
        total > 0 && done < total ? (int64_t)((double)done / (double)total * BAR_CELLS) : BAR_CELLS;
    for (int cell = 0; cell < BAR_CELLS; cell++)
        bar[cell] = cell < filled ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    clear_bar(log);
    fprintf(stderr, "%s  [%s]  %s", log->stage, bar, text);
    log->bar_shown = done < total;
    if (done >= total)
        fputc('\n', stderr);
    fflush(stderr);
}

/* What is no file, such as a pipe, keeps no earlier log. */
static void replace_earlier(decant_log *log)
{
    struct stat about;
    int file = fileno(log->json);
    if (fstat(file, &about) == 0 && S_ISREG(about.st_mode) && ftruncate(file, 0) != 0)
        decant_log_say(log, "the earlier log stays in front of this one: %s", strerror(errno));
    log->json_begun = true;
}

void decant_log_event(decant_log *log, const char *event, const char *fields, ...)
{
    if (!log->json)
        return;
    if (!log->json_begun)
        replace_earlier(log);
    va_list arguments, again;
    va_start(arguments, fields);
    va_copy(again, arguments);
    bool has_fields = vsnprintf(NULL, 0, fields, again) > 0;
    va_end(again);
    fprintf(log->json, "%s%.3f,\"event\":\"%s\"%s", line_beginning, decant_clock_s() - log->start_s, event,
            has_fields ? "," : "");
    vfprintf(log->json, fields, arguments);
    va_end(arguments);
    fputs("}\n", log->json);
    if (fflush(log->json) == 0)
        return;
    decant_log_say(log, "the log cannot be written any more: %s", strerror(errno));
    fclose(log->json);
    log->json = NULL;
}
