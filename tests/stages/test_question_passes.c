/* Which sequences pass so that every choice is scored once, and from its own context; and tallies of ties. */
#include "stages/question_passes.h"

#include "tests/io/scratch.h"

enum { QUESTIONS = 200, MOST_CHOICES = 5, MOST_TOKENS = 60 };

/* splitmix64 (Steele, Lea, Flood 2014). */
static int64_t random_below(uint64_t *seed, int64_t end)
{
    uint64_t bits = *seed += 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return (int64_t)((bits ^ bits >> 31) % (uint64_t)end);
}

static decant_token_span random_span(decant_question_set *set, uint64_t *seed, int64_t count)
{
    decant_token_span span = {set->token_count, count};
    for (int64_t i = 0; i < count; i++)
        set->tokens[set->token_count++] = (int32_t)random_below(seed, 1000);
    return span;
}

/* Arrays of the set are freed by decant_question_set_free. */
static void make_set(decant_question_set *set)
{
    uint64_t seed = 5;
    decant_error err = {0};
    *set = (decant_question_set){0};
    assert_ok(decant_memory_allocate(QUESTIONS * sizeof *set->questions, "", (void **)&set->questions, &err));
    assert_ok(decant_memory_allocate(QUESTIONS * MOST_CHOICES * sizeof *set->choices, "",
                                     (void **)&set->choices, &err));
    assert_ok(decant_memory_allocate(QUESTIONS * (MOST_CHOICES + 1) * MOST_TOKENS * sizeof *set->tokens, "",
                                     (void **)&set->tokens, &err));
    for (; set->question_count < QUESTIONS; set->question_count++) {
        decant_question *question = &set->questions[set->question_count];
        bool single = random_below(&seed, 2);
        question->context = random_span(set, &seed, 1 + random_below(&seed, MOST_TOKENS));
        question->first_choice = set->choice_count;
        question->choices = (int)(2 + random_below(&seed, MOST_CHOICES - 1));
        for (int i = 0; i < question->choices; i++)
            set->choices[set->choice_count++] =
                (decant_question_choice){random_span(set, &seed, single ? 1 : 1 + random_below(&seed, 9)), 1};
    }
}

static bool is_single(const decant_question_set *set, const decant_question *question)
{
    for (int i = 0; i < question->choices; i++)
        if (set->choices[question->first_choice + i].tokens.count != 1)
            return false;
    return true;
}

/* The token that the pass sees at place t, from the questions themselves. */
static int32_t token_of(const decant_question_set *set, const decant_question_pass *pass, int64_t t)
{
    decant_token_span context = set->questions[pass->question].context;
    decant_token_span choice = set->choices[pass->first_choice].tokens;
    return t < context.count ? set->tokens[context.first + t] : set->tokens[choice.first + t - context.count];
}

static void expect_pass(const decant_question_passes *passes, const decant_question_pass *pass,
                        const int32_t *row, int64_t batch_length)
{
    const decant_question_set *set = passes->set;
    const decant_question *question = &set->questions[pass->question];
    int64_t rows = set->choices[pass->first_choice].tokens.count;
    assert_int_equal(pass->context, question->context.count);
    assert_int_equal(pass->length, pass->context + rows - 1);
    assert_int_equal(pass->choices, is_single(set, question) ? question->choices : 1);
    assert_true(pass->first_choice >= question->first_choice &&
                pass->first_choice + pass->choices <= question->first_choice + question->choices);
    assert_true(rows <= passes->head_rows);
    for (int64_t t = 0; t < batch_length; t++)
        assert_int_equal(row[t], t < pass->length ? token_of(set, pass, t) : 0);
}

static void every_choice_is_scored_once(void **state)
{
    (void)state;
    static const int64_t limits[] = {1, 64, 500, 1000000};
    for (size_t limit = 0; limit < sizeof limits / sizeof *limits; limit++) {
        decant_error err = {0};
        decant_question_set set;
        decant_question_passes passes;
        make_set(&set);
        int scored[QUESTIONS * MOST_CHOICES] = {0};
        assert_ok(decant_question_passes_create(&set, limits[limit], &passes, &err));
        int64_t next = 0, largest = 0, longest = 0;
        for (int64_t b = 0; b < passes.batch_count; b++) {
            const decant_question_batch *batch = &passes.batches[b];
            assert_int_equal(batch->first_pass, next);
            assert_true(batch->passes == 1 || batch->passes * batch->length <= limits[limit]);
            for (int64_t i = 0; i < batch->passes; i++, next++) {
                const decant_question_pass *pass = &passes.passes[next];
                assert_true(pass->length >= longest && pass->length <= batch->length);
                longest = pass->length;
                expect_pass(&passes, pass, passes.tokens + batch->first_token + i * batch->length,
                            batch->length);
                for (int64_t choice = 0; choice < pass->choices; choice++)
                    scored[pass->first_choice + choice]++;
            }
            if (batch->passes * batch->length > largest)
                largest = batch->passes * batch->length;
        }
        assert_int_equal(next, passes.pass_count);
        assert_int_equal(largest, passes.largest_batch);
        for (int64_t i = 0; i < set.choice_count; i++)
            assert_int_equal(scored[i], 1);
        decant_question_passes_free(&passes);
        decant_question_set_free(&set);
    }
}

static void tallies_count_ties_for_the_first(void **state)
{
    (void)state;
    decant_question questions[] = {
        {.subject = 0, .first_choice = 0, .choices = 2, .answer = 0},
        {.subject = 1, .first_choice = 2, .choices = 3, .answer = 2},
        {.subject = 1, .first_choice = 5, .choices = 2, .answer = 1},
    };
    decant_question_choice choices[] = {{.length = 1}, {.length = 1}, {.length = 2}, {.length = 4},
                                        {.length = 1}, {.length = 1}, {.length = 8}};
    const decant_question_set set = {
        .questions = questions, .question_count = 3, .choices = choices, .choice_count = 7, .subject_count = 2};
    /* a tie; by length −1, −0.75, −2; by length −3, −0.5 */
    const double scores[] = {-1, -1, -2, -3, -2, -3, -4};
    decant_question_tally subjects[2], overall;
    decant_question_tally_scores(&set, scores, subjects, &overall);
    assert_int_equal(subjects[0].questions, 1);
    assert_int_equal(subjects[0].right, 1);
    assert_int_equal(subjects[0].right_normalized, 1);
    assert_int_equal(subjects[1].questions, 2);
    assert_int_equal(subjects[1].right, 0);
    assert_int_equal(subjects[1].right_normalized, 1);
    assert_int_equal(overall.questions, 3);
    assert_int_equal(overall.right, 1);
    assert_int_equal(overall.right_normalized, 2);
    assert_int_equal(decant_question_favourite(&set, &questions[1], scores, false), 0);
    assert_int_equal(decant_question_favourite(&set, &questions[1], scores, true), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_choice_is_scored_once, scratch_make, scratch_remove),
        cmocka_unit_test(tallies_count_ties_for_the_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
