/* What is said of questions: a table on stdout, a member of the JSON object, events in the log. report.c puts
 * them in their places. Rank 0 speaks. */
#ifndef DECANT_PIPELINE_REPORT_QUESTIONS_H
#define DECANT_PIPELINE_REPORT_QUESTIONS_H

#include "pipeline/job.h"

/* Accuracy by subject and overall, of the original where there is one. */
void decant_print_questions(const decant_question_result *result, bool has_original, FILE *stream);

/* "choices":{…}, a member of a JSON object. */
void decant_print_questions_json(const decant_question_result *result, bool has_original, FILE *stream);

/* One event for all questions, and one for each with its scores. */
void decant_log_questions(decant_log *log, const decant_question_result *result, bool has_original);

#endif
