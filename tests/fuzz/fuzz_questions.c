/* A file of questions: every token that is let in is inside the vocabulary, and all spans are inside the set.
 */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/question_file.h"

enum { VOCABULARY = 100 };

static void check_span(const decant_question_set *set, decant_token_span span)
{
    if (span.count < 1 || span.first < 0 || span.first + span.count > set->token_count)
        abort();
}

static void check(const decant_question_set *set)
{
    for (int64_t i = 0; i < set->token_count; i++)
        if (set->tokens[i] < 0 || set->tokens[i] >= VOCABULARY)
            abort();
    for (int64_t i = 0; i < set->question_count; i++) {
        const decant_question *question = &set->questions[i];
        check_span(set, question->context);
        if (question->subject < 0 || question->subject >= set->subject_count || question->choices < 2 ||
            question->answer < 0 || question->answer >= question->choices ||
            question->first_choice + question->choices > set->choice_count)
            abort();
        for (int choice = 0; choice < question->choices; choice++) {
            check_span(set, set->choices[question->first_choice + choice].tokens);
            if (!(set->choices[question->first_choice + choice].length > 0))
                abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_question_set set;
    decant_error err;
    if (decant_question_set_read(input_file(data, size_bytes), VOCABULARY, &set, &err) == DECANT_OK) {
        check(&set);
        decant_question_set_free(&set);
    }
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
