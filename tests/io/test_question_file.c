/* io/question_file on a file as it should be, and on lines that are not. */
#include "io/question_file.h"

#include "tests/io/scratch.h"

#include <sys/syscall.h>

static const char *cut_at_close; /* a file of one page more, which loses it when it has been mapped */

/* In place of the C library's. A file that is cut while it is read stands in for a disk that fails. */
int close(int descriptor)
{
    if (cut_at_close && truncate(cut_at_close, sysconf(_SC_PAGESIZE)) != 0)
        abort();
    cut_at_close = NULL;
    return (int)syscall(SYS_close, descriptor);
}

enum { VOCABULARY = 100 };

static decant_status read_lines(const scratch *at, const char *lines, decant_question_set *set,
                                decant_error *err)
{
    char path[128];
    scratch_write(at, "q.jsonl", lines, strlen(lines));
    scratch_path(at, "q.jsonl", path, sizeof path);
    return decant_question_set_read(path, VOCABULARY, set, err);
}

static void a_file_is_read(void **state)
{
    decant_error err = {0};
    decant_question_set set;
    assert_ok(
        read_lines(*state,
                   "{\"subject\":\"logic\",\"context\":[1,2,3],\"choices\":[[4],[5,6]],\"answer\":1}\n"
                   "\r\n\n"
                   "{\"context\":[0],\"choices\":[[99],[7],[8]],\"lengths\":[1,2.5,3],\"answer\":0,\"x\":1}\n"
                   "{\"subject\":\"logic\",\"context\":[9],\"choices\":[[9],[9]],\"answer\":0}",
                   &set, &err));
    assert_int_equal(set.question_count, 3);
    assert_int_equal(set.choice_count, 7);
    assert_int_equal(set.token_count, 6 + 4 + 3);
    assert_int_equal(set.subject_count, 2);
    assert_int_equal(decant_question_set_longest(&set), 5);
    assert_string_equal(set.subjects[0], "logic");
    assert_string_equal(set.subjects[1], "all");
    const decant_question *first = &set.questions[0], *second = &set.questions[1], *third = &set.questions[2];
    assert_int_equal(first->subject, 0);
    assert_int_equal(first->answer, 1);
    assert_int_equal(first->context.count, 3);
    assert_int_equal(decant_question_tokens(&set, first->context)[2], 3);
    assert_int_equal(set.choices[1].tokens.count, 2);
    assert_int_equal(decant_question_tokens(&set, set.choices[1].tokens)[1], 6);
    assert_true(set.choices[1].length == 2); /* tokens, as nothing is said */
    assert_int_equal(second->subject, 1);
    assert_int_equal(second->first_choice, 2);
    assert_int_equal(second->choices, 3);
    assert_true(set.choices[3].length == 2.5);
    assert_int_equal(third->subject, 0);
    assert_int_equal(decant_question_tokens(&set, set.choices[second->first_choice].tokens)[0], 99);
    decant_question_set_free(&set);
}

/* More than any array first had room for. */
static void many_lines_are_read(void **state)
{
    enum { LINES = 300, LINE_BYTES = 96 };
    static char lines[LINES * LINE_BYTES];
    decant_error err = {0};
    decant_question_set set;
    size_t length = 0;
    for (int i = 0; i < LINES; i++)
        length +=
            (size_t)snprintf(lines + length, sizeof lines - length,
                             "{\"subject\":\"s%d\",\"context\":[%d],\"choices\":[[%d],[1,2]],\"answer\":%d}\n",
                             i % 150, i % 100, (i + 1) % 100, i % 2);
    assert_ok(read_lines(*state, lines, &set, &err));
    assert_int_equal(set.question_count, LINES);
    assert_int_equal(set.subject_count, 150);
    for (int i = 0; i < LINES; i++) {
        const decant_question *question = &set.questions[i];
        assert_int_equal(question->subject, i % 150);
        assert_int_equal(question->answer, i % 2);
        assert_int_equal(decant_question_tokens(&set, question->context)[0], i % 100);
        assert_int_equal(decant_question_tokens(&set, set.choices[question->first_choice].tokens)[0],
                         (i + 1) % 100);
    }
    decant_question_set_free(&set);
}

static void bad_lines_are_refused(void **state)
{
    static const struct {
        const char *line, *named;
    } cases[] = {
        {"", "has no question"},
        {"\n \n", "has no question"},
        {"{", "line 1: is no JSON"},
        {"[1]", "is no JSON object"},
        {"{\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}\n{}", "line 2: \"context\" is no list"},
        {"{\"context\":[],\"choices\":[[2],[3]],\"answer\":0}", "\"context\" is no list of at least one"},
        {"{\"context\":[1.5],\"choices\":[[2],[3]],\"answer\":0}", "outside the vocabulary of 100"},
        {"{\"context\":[\"1\"],\"choices\":[[2],[3]],\"answer\":0}", "outside the vocabulary of 100"},
        {"{\"context\":[-1],\"choices\":[[2],[3]],\"answer\":0}", "outside the vocabulary of 100"},
        {"{\"context\":[100],\"choices\":[[2],[3]],\"answer\":0}", "outside the vocabulary of 100"},
        {"{\"context\":[1],\"choices\":[[2]],\"answer\":0}", "no list of 2 to 64 choices"},
        {"{\"context\":[1],\"choices\":[[2],[]],\"answer\":0}", "a choice is no list"},
        {"{\"context\":[1],\"choices\":[[2],3],\"answer\":0}", "a choice is no list"},
        {"{\"context\":[1],\"choices\":[[2],[3]]}", "\"answer\" is no number from 0 to 1"},
        {"{\"context\":[1],\"choices\":[[2],[3]],\"answer\":2}", "\"answer\" is no number from 0 to 1"},
        {"{\"context\":[1],\"choices\":[[2],[3]],\"answer\":\"A\"}", "\"answer\" is no number"},
        {"{\"context\":[1],\"choices\":[[2],[3]],\"lengths\":[1],\"answer\":0}", "\"lengths\" is no list of 2"},
        {"{\"context\":[1],\"choices\":[[2],[3]],\"lengths\":[1,0],\"answer\":0}",
         "a length is no number above"},
        {"{\"context\":[1],\"choices\":[[2],[3]],\"lengths\":[1,\"x\"],\"answer\":0}", "a length is no number"},
        {"{\"subject\":\"a\\\"b\",\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}",
         "\"subject\" is no name"},
        {"{\"subject\":\"a\\\\b\",\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}",
         "\"subject\" is no name"},
        {"{\"subject\":\"a\\tb\",\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}",
         "\"subject\" is no name"},
        {"{\"subject\":\"\",\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}", "\"subject\" is no name"},
        {"{\"subject\":7,\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}", "\"subject\" is no name"},
        {"{\"answer\":0,\"context\":[1],\"choices\":[[2],[3]],\"answer\":1}", "\"answer\" twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        decant_error err = {0};
        decant_question_set set;
        assert_status(read_lines(*state, cases[i].line, &set, &err), DECANT_ERROR_INPUT);
        assert_message(&err, cases[i].named);
        assert_message(&err, "q.jsonl");
        assert_null(set.questions);
        assert_null(set.tokens);
    }
}

static void a_file_that_cannot_be_read_to_its_end_is_named(void **state)
{
    static const char line[] = "{\"context\":[1],\"choices\":[[2],[3]],\"answer\":0}\n";
    const size_t file_bytes = 2 * (size_t)sysconf(_SC_PAGESIZE);
    char *lines = malloc(file_bytes), path[128];
    decant_error err = {0};
    decant_question_set set;
    assert_non_null(lines);
    for (size_t i = 0; i < file_bytes; i++)
        lines[i] = i / (sizeof line - 1) < file_bytes / (sizeof line - 1) ? line[i % (sizeof line - 1)] : ' ';
    scratch_write(*state, "q.jsonl", lines, file_bytes);
    free(lines);
    scratch_path(*state, "q.jsonl", path, sizeof path);
    assert_ok(decant_question_set_read(path, VOCABULARY, &set, &err));
    decant_question_set_free(&set);
    cut_at_close = path;
    assert_status(decant_question_set_read(path, VOCABULARY, &set, &err), DECANT_ERROR_INPUT);
    assert_message(&err, path);
    assert_message(&err, "cannot be read at byte");
    assert_null(set.questions);
}

static void the_line_is_named_whatever_the_path(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_question_set set;
    char path[512];
    int length = snprintf(path, sizeof path, "%s/", at->folder);
    for (int depth = 0; depth < 3; depth++) {
        length += snprintf(path + length, sizeof path - (size_t)length, "%0100d", depth);
        assert_int_equal(mkdir(path, 0777), 0);
        length += snprintf(path + length, sizeof path - (size_t)length, "/");
    }
    snprintf(path + length, sizeof path - (size_t)length, "q.jsonl");
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs("\n{}", file);
    assert_int_equal(fclose(file), 0);
    assert_status(decant_question_set_read(path, VOCABULARY, &set, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "/q.jsonl, line 2: \"context\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_is_read, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(many_lines_are_read, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(bad_lines_are_refused, scratch_make, scratch_remove),
        cmocka_unit_test_setup_teardown(a_file_that_cannot_be_read_to_its_end_is_named, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(the_line_is_named_whatever_the_path, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
