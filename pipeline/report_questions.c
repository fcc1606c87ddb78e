/* See report_questions.h. */
#include "pipeline/report_questions.h"

enum { ORIGINAL = DECANT_VALIDATION_ORIGINAL, QUANTIZED = DECANT_VALIDATION_QUANTIZED };

static double share(int64_t right, int64_t questions)
{
    return questions > 0 ? (double)right / (double)questions : 0;
}

/* ---- for people ---- */

static void print_row(const char *name, const decant_question_tally *original,
                      const decant_question_tally *quantized, FILE *stream)
{
    fprintf(stream, "%-40s %9lld", name, (long long)quantized->questions);
    if (original)
        fprintf(stream, " %8.2f %% %8.2f %%", 100 * share(original->right, original->questions),
                100 * share(original->right_normalized, original->questions));
    fprintf(stream, " %8.2f %% %8.2f %%\n", 100 * share(quantized->right, quantized->questions),
            100 * share(quantized->right_normalized, quantized->questions));
}

void decant_print_questions(const decant_question_result *result, bool has_original, FILE *stream)
{
    const decant_question_set *set = result->set;
    fprintf(stream, "%-40s %9s", "accuracy", "questions");
    if (has_original)
        fprintf(stream, " %10s %10s", "before", "by length");
    fprintf(stream, " %10s %10s\n", has_original ? "after" : "", "by length");
    for (int i = 0; set->subject_count > 1 && i < set->subject_count; i++)
        print_row(set->subjects[i], has_original ? &result->subjects[ORIGINAL][i] : NULL,
                  &result->subjects[QUANTIZED][i], stream);
    print_row("all questions", has_original ? &result->overall[ORIGINAL] : NULL, &result->overall[QUANTIZED],
              stream);
}

/* ---- for programs ---- */

/* The figures of some questions, as members of an object. */
static void print_members(const decant_question_tally *original, const decant_question_tally *quantized,
                          FILE *stream)
{
    fprintf(stream, "\"questions\":%lld", (long long)quantized->questions);
    if (original)
        fprintf(stream, ",\"accuracy_original\":%.9g,\"accuracy_by_length_original\":%.9g",
                share(original->right, original->questions),
                share(original->right_normalized, original->questions));
    fprintf(stream, ",\"accuracy_quantized\":%.9g,\"accuracy_by_length_quantized\":%.9g",
            share(quantized->right, quantized->questions),
            share(quantized->right_normalized, quantized->questions));
}

void decant_print_questions_json(const decant_question_result *result, bool has_original, FILE *stream)
{
    const decant_question_set *set = result->set;
    fprintf(stream, "\"choices\":{");
    print_members(has_original ? &result->overall[ORIGINAL] : NULL, &result->overall[QUANTIZED], stream);
    fprintf(stream, ",\"subjects\":{");
    for (int i = 0; i < set->subject_count; i++) {
        fprintf(stream, "%s\"%s\":{", i ? "," : "", set->subjects[i]);
        print_members(has_original ? &result->subjects[ORIGINAL][i] : NULL, &result->subjects[QUANTIZED][i],
                      stream);
        fprintf(stream, "}");
    }
    fprintf(stream, "}}");
}

/* The scores of a question's choices, as a list. */
static void list_scores(const double *scores, const decant_question *question, char *text, size_t size)
{
    size_t length = 0;
    for (int i = 0; i < question->choices; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%.9g", i ? "," : "",
                                   scores[question->first_choice + i]);
}

void decant_log_questions(decant_log *log, const decant_question_result *result, bool has_original)
{
    enum { LIST_BYTES = DECANT_QUESTION_CHOICES_MAXIMUM * 24 };
    const decant_question_set *set = result->set;
    const decant_question_tally *before = &result->overall[ORIGINAL], *after = &result->overall[QUANTIZED];
    decant_log_event(
        log, "questions",
        "\"seconds\":%.3f,\"questions\":%lld,\"accuracy_original\":%.9g,\"accuracy_quantized\":%.9g",
        result->seconds, (long long)after->questions, share(before->right, before->questions),
        share(after->right, after->questions));
    for (int64_t i = 0; i < set->question_count; i++) {
        const decant_question *question = &set->questions[i];
        char original[LIST_BYTES] = "", quantized[LIST_BYTES] = "";
        if (has_original)
            list_scores(result->scores[ORIGINAL], question, original, sizeof original);
        list_scores(result->scores[QUANTIZED], question, quantized, sizeof quantized);
        decant_log_event(log, "question",
                         "\"question\":%lld,\"subject\":\"%s\",\"answer\":%d,\"scores_original\":[%s],"
                         "\"scores_quantized\":[%s]",
                         (long long)i, set->subjects[question->subject], question->answer, original, quantized);
    }
}
