/* Multiple-choice questions as token ids: JSON lines, one question a line, as launch/tokenize-choices makes
 * them.
 *
 *   {"subject": "anatomy", "context": [1, 450, …], "choices": [[319], [350], …],
 *    "lengths": [1, 1, …], "answer": 2}
 *
 * context  what the model reads first, at least one token
 * choices  2 … 64 continuations of at least one token each
 * lengths  of the choices as text, > 0, by which log-likelihoods are divided to be compared; the numbers of
 *          tokens when the key is missing
 * answer   which choice is right, counted from 0
 * subject  a name without quotes, backslashes and control characters; may be missing
 * Empty lines are passed over; other keys mean nothing. */
#ifndef DECANT_IO_QUESTION_FILE_H
#define DECANT_IO_QUESTION_FILE_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

enum { DECANT_QUESTION_CHOICES_MAXIMUM = 64, DECANT_SUBJECT_BYTES = 96 };

/* Some tokens of the set. */
typedef struct decant_token_span {
    int64_t first, count;
} decant_token_span;

typedef struct decant_question_choice {
    decant_token_span tokens;
    double length;
} decant_question_choice;

typedef struct decant_question {
    int subject; /* index into subjects */
    decant_token_span context;
    int64_t first_choice; /* index into choices */
    int choices, answer;
} decant_question;

typedef struct decant_question_set {
    decant_question *questions; /* [question_count], in the file's order; owned, as is all below */
    int64_t question_count;
    decant_question_choice *choices; /* [choice_count], those of a question side by side */
    int64_t choice_count;
    int32_t *tokens; /* [token_count] */
    int64_t token_count;
    char (*subjects)[DECANT_SUBJECT_BYTES]; /* [subject_count], in the order in which they first appear */
    int subject_count;
    uint32_t checksum; /* CRC-32 of the file */
} decant_question_set;

/* Reads the file. DECANT_ERROR_INPUT, naming the line, when it is no such file, has no question, or has a token
 * outside [0, vocabulary_size). Freed with decant_question_set_free, which takes an empty set too; empty after
 * a failure. */
decant_status decant_question_set_read(const char *path, int64_t vocabulary_size, decant_question_set *set,
                                       decant_error *err);
void decant_question_set_free(decant_question_set *set);

/* Tokens of the longest question with its longest choice; 0 of an empty set. */
int64_t decant_question_set_longest(const decant_question_set *set);

static inline const int32_t *decant_question_tokens(const decant_question_set *set, decant_token_span span)
{
    return set->tokens + span.first;
}

#endif
