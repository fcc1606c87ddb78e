/* The command line and the job file. */
#include "pipeline/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define READ(options, err, ...)                                                                                \
    decant_options_read((int)(sizeof((char *[]){"decant", __VA_ARGS__}) / sizeof(char *)),                     \
                        (char *[]){"decant", __VA_ARGS__}, (options), (err))

/* The value alone is what is refused, by name: nothing else is wrong with the command. */
static void expect_no_good_value(const char *command, const char *option, const char *value)
{
    decant_options options;
    decant_error err;
    char expected[256];
    snprintf(expected, sizeof expected, "%s: '%s' is no good value", option, value);
    assert_int_equal(READ(&options, &err, (char *)command, (char *)option, (char *)value), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, expected));
}

static void defaults_when_little_is_given(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "run", "--model", "m", "--calibration", "c.npy", "--bits", "3.25",
                          "--output", "o.h5"),
                     DECANT_OK);
    assert_int_equal(options.command, DECANT_COMMAND_RUN);
    assert_string_equal(options.model, "m");
    assert_true(options.bits == 3.25);
    assert_true(options.sensitive > 0.000499 && options.sensitive < 0.000501);
    assert_true(options.outliers > 0.00399 && options.outliers < 0.00401);
    assert_int_equal(options.fisher, DECANT_FISHER_TOKEN);
    assert_int_equal(options.bit_widths.count, 5);
    assert_false(options.overwrite);
}

static void widths_are_sorted_when_given_as_ranges(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "run", "--model", "m", "--calibration", "c", "--bits", "4",
                          "--output", "o", "--bit-widths", "6,2-4,3"),
                     DECANT_OK);
    const double expected[] = {2, 3, 4, 6};
    assert_int_equal(options.bit_widths.count, 4);
    assert_memory_equal(options.bit_widths.width, expected, sizeof expected);
    assert_false(options.bit_widths.is_default);
    const char *bad[] = {"",    "1",     "9",     "4-2",   "3,",  "a",   "3-",
                         "2;3", "2.5-4", "2-3.5", "2-3-4", "nan", "0x4", "+3"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_no_good_value("run", "--bit-widths", bad[i]);
}

static void methods_grids_and_fractional_widths_are_read(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "run", "--model", "m", "--calibration", "c", "--bits", "4",
                          "--output", "o", "--method", "nf4,kmeans,higgs", "--bit-widths", "4,2.67,2.5",
                          "--grid-dimension", "3,2", "--group", "64,0", "--seed", "7", "--guided-sparse",
                          "0.45%,0,0.2"),
                     DECANT_OK);
    decant_recipe recipe = decant_options_recipe(&options);
    assert_true(recipe.uses[DECANT_METHOD_KMEANS] && recipe.uses[DECANT_METHOD_HIGGS]);
    assert_true(recipe.uses[DECANT_METHOD_NF4] && !recipe.uses[DECANT_METHOD_RTN]);
    const double widths[] = {2.5, 2.67, 4};
    assert_int_equal(recipe.widths, 3);
    assert_memory_equal(recipe.width, widths, sizeof widths);
    assert_int_equal(recipe.dimensions, 2);
    assert_true(recipe.dimension[0] == 2 && recipe.dimension[1] == 3);
    assert_int_equal(recipe.groups, 2);
    assert_true(recipe.group[0] == 0 && recipe.group[1] == 64 && recipe.seed == 7);
    assert_int_equal(recipe.guided_sparse_count, 3);
    assert_true(recipe.guided_sparse[0] == 0 && recipe.guided_sparse[1] == 0.2 / 100 &&
                recipe.guided_sparse[2] == 0.45 / 100);
    char text[1024];
    decant_options_describe(&options, text, sizeof text);
    assert_non_null(strstr(text, "guided-sparse=0%,0.2%,0.45%"));
    assert_non_null(
        strstr(text, "method=kmeans,higgs,nf4 bit-widths=2.5,2.67,4 grid-dimension=2,3 group=0,64"));
    const char *bad[][2] = {
        {"--method", "kmeans,"},          {"--method", ""},          {"--method", "kmean"},
        {"--grid-dimension", "0"},        {"--group", "-1"},         {"--group", "0,,1"},
        {"--group", "1,2,3,4,5,6,7,8,9"}, {"--guided-sparse", "60"}, {"--guided-sparse", "0,,1"},
        {"--guided-sparse", "1%%"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_no_good_value("run", bad[i][0], bad[i][1]);
}

static void calibration_is_needed_when_and_only_when_kmeans_is_used(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "run", "--model", "m", "--output", "o", "--method", "nf4"),
                     DECANT_OK);
    assert_true(decant_options_are_data_free(&options));
    assert_int_equal(
        READ(&options, &err, "run", "--model", "m", "--output", "o", "--method", "nf4", "--calibration", "c"),
        DECANT_OK);
    assert_false(decant_options_are_data_free(&options));
    assert_int_equal(
        READ(&options, &err, "run", "--model", "m", "--output", "o", "--method", "nf4,kmeans", "--bits", "4"),
        DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--calibration"));
    assert_int_equal(READ(&options, &err, "run", "--model", "m", "--output", "o", "--method", "higgs"),
                     DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--bits"));
    assert_int_equal(
        READ(&options, &err, "run", "--model", "m", "--output", "o", "--method", "nf4", "--bit-widths", "3,4"),
        DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "3 bits"));
}

static void sizes_are_decimal_or_binary_as_their_unit_says(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t bytes;
    } good[] = {{"1", 1},
                {"3500000000", 3500000000},
                {"3.5GB", 3500000000},
                {"3.5GiB", 3758096384},
                {"1kB", 1000},
                {"1KB", 1000},
                {"1KiB", 1024},
                {"2MB", 2000000},
                {"80G", INT64_C(80) << 30},
                {"512M", 512 << 20},
                {"1TiB", INT64_C(1) << 40}};
    const char *bad[] = {"", "GB", "3.5Q", "3.5gb", "-1GB", "0", "nan", "1e30", "3.5 GB", "infGB"};
    decant_options options;
    decant_error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(READ(&options, &err, "allocate", "m.h5", "--size", (char *)good[i].text), DECANT_OK);
        assert_true(options.size_bytes == good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_no_good_value("allocate", "--size", bad[i]);
}

static void sweeps_ascend_in_steps(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "allocate", "m.h5", "--sweep", "2.5:5:0.25"), DECANT_OK);
    assert_true(options.sweep.first == 2.5 && options.sweep.last == 5 && options.sweep.step == 0.25);
    const char *bad[] = {"",      "2.5",    "2.5:5",    "5:2.5:0.25", "2:3:0",  "2:3:-1",
                         "0:3:1", "2:99:1", "2:3:1e-9", "2:3:1:",     "nan:3:1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_no_good_value("allocate", "--sweep", bad[i]);
    assert_int_equal(READ(&options, &err, "allocate", "m.h5"), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--size"));
}

static void one_line_tells_when_usage_is_wrong(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "run", "--model", "m"), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--calibration"));
    static const char *const bad[][2] = {{"--outliers", "60%"},     {"--fisher", "tok"}, {"--sequences", "12x"},
                                         {"--replicas", "4097"},    {"--bits", "nan"},   {"--seed", "-1"},
                                         {"--checkpoint-every", ""}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_no_good_value("run", bad[i][0], bad[i][1]);
    assert_int_equal(READ(&options, &err, "run", "--nonsense"), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--nonsense: no such option"));
    assert_int_equal(READ(&options, &err, "verify"), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "verify takes 1 container, 0 given"));
    assert_int_equal(READ(&options, &err, "verify", "a", "b"), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "verify takes 1 container, 2 given"));
    assert_int_equal(READ(&options, &err, "run", "--model", "m", "--calibration", "c", "--output", "o"),
                     DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--bits"));
    assert_int_equal(
        READ(&options, &err, "calibrate", "--model", "m", "--calibration", "c", "--output", "o", "--log", "o"),
        DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "--log"));
    assert_int_equal(READ(&options, &err, "allocate", "m.h5", "--bits", "4", "--output", "o"),
                     DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "allocate writes no file"));
    assert_int_equal(READ(&options, &err, "allocate", "m.h5", "--sweep", "1:16:0.01"), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "fewer than 1000 steps"));
    assert_int_equal(decant_options_read(1, (char *[]){"decant", NULL}, &options, &err), DECANT_ERROR_USAGE);
}

static void command_line_wins_when_job_file_says_otherwise(void **state)
{
    (void)state;
    char path[] = "/tmp/decant_options_XXXXXX";
    int descriptor = mkstemp(path);
    FILE *file = fdopen(descriptor, "w");
    fputs("; a comment\nmodel = from_file\nbits = 3\noverwrite = yes\n[section]\ncalibration = c.npy\n", file);
    fclose(file);
    decant_options options;
    decant_error err;
    assert_int_equal(READ(&options, &err, "run", "--config", path, "--bits", "4", "--output", "o"), DECANT_OK);
    assert_string_equal(options.model, "from_file");
    assert_true(options.bits == 4);
    assert_true(options.overwrite);
    file = fopen(path, "w");
    fputs("modle = x\n", file);
    fclose(file);
    assert_int_equal(READ(&options, &err, "run", "--config", path), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "modle"));
    remove(path);
    assert_int_equal(READ(&options, &err, "run", "--config", path), DECANT_ERROR_INPUT);
}

/* A line holds the longest path there may be; one that is indented is a line of its own. */
static void lines_of_a_job_file_are_read_whole_and_one_by_one(void **state)
{
    (void)state;
    char path[] = "/tmp/decant_options_XXXXXX", model[DECANT_OPTION_PATH_BYTES];
    decant_options options;
    decant_error err;
    memset(model, 'm', sizeof model);
    model[sizeof model - 1] = '\0';
    FILE *file = fdopen(mkstemp(path), "w");
    fprintf(file,
            "\xEF\xBB\xBFmodel = %s ; the longest\r\n  bits = 3 \n\t# nothing\noutput: a;b.h5\ntext = c = d\n",
            model);
    fclose(file);
    assert_int_equal(READ(&options, &err, "run", "--config", path, "--calibration", "c"), DECANT_OK);
    assert_int_equal(READ(&options, &err, "verify", "m.h5", "--config", path), DECANT_OK); /* has an output */
    assert_int_equal(READ(&options, &err, "run", "--config", path, "--calibration", "c"), DECANT_OK);
    assert_string_equal(options.model, model);
    assert_true(options.bits == 3);
    assert_string_equal(options.output, "a;b.h5");
    assert_string_equal(options.text, "c = d");
    file = fopen(path, "w");
    fprintf(file, "bits = 3\nmodel = %s%s%s%s%s\n", model, model, model, model, model);
    fclose(file);
    assert_int_equal(READ(&options, &err, "run", "--config", path), DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, "line 2: is longer than"));
    remove(path);
}

/* The first wrong line is told, wherever it stands: what comes behind it is right. */
static void a_wrong_line_of_a_job_file_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *place, *reason;
        decant_status status;
    } files[] = {
        {"bits = 3\nmodle = x\nquiet = yes\n", "line 2", "modle", DECANT_ERROR_USAGE},
        {"bits = many\nfisher = tok\nquiet = yes\n", "line 1", "a number from 1 to 16", DECANT_ERROR_USAGE},
        {"quiet = yes\nbits\nmodle = x\n", "line 2", "name = value", DECANT_ERROR_INPUT},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[] = "/tmp/decant_options_XXXXXX";
        FILE *file = fdopen(mkstemp(path), "w");
        fputs(files[i].text, file);
        fclose(file);
        decant_options options;
        decant_error err;
        assert_int_equal(READ(&options, &err, "run", "--config", path), files[i].status);
        assert_non_null(strstr(err.message, path));
        assert_non_null(strstr(err.message, files[i].place));
        assert_non_null(strstr(err.message, files[i].reason));
        remove(path);
    }
}

static void a_path_that_is_too_long_is_refused_and_not_cut(void **state)
{
    (void)state;
    char path[DECANT_OPTION_PATH_BYTES + 1];
    decant_options options;
    decant_error err;
    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = '\0';
    assert_int_equal(READ(&options, &err, "verify", path), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "bytes"));
    assert_int_equal(READ(&options, &err, "compare", "a.h5", path), DECANT_ERROR_USAGE);
    assert_int_equal(READ(&options, &err, "run", "--model", path), DECANT_ERROR_USAGE);
    assert_non_null(strstr(err.message, "a path of at most"));
    path[sizeof path - 2] = '\0';
    assert_int_equal(READ(&options, &err, "verify", path), DECANT_OK);
    assert_string_equal(options.container, path);
}

static void provenance_changes_when_and_only_when_contents_would(void **state)
{
    (void)state;
    decant_options options;
    decant_error err;
    char first[1024], second[1024], third[1024];
    READ(&options, &err, "run", "--model", "m", "--calibration", "c", "--bits", "4", "--output", "o");
    decant_options_describe(&options, first, sizeof first);
    READ(&options, &err, "run", "--model", "elsewhere", "--calibration", "d", "--bits", "4", "--output", "p",
         "--threads", "7");
    decant_options_describe(&options, second, sizeof second);
    READ(&options, &err, "run", "--model", "m", "--calibration", "c", "--bits", "4", "--output", "o",
         "--outliers", "1%");
    decant_options_describe(&options, third, sizeof third);
    assert_string_equal(first, second);
    assert_string_not_equal(first, third);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_when_little_is_given),
        cmocka_unit_test(widths_are_sorted_when_given_as_ranges),
        cmocka_unit_test(methods_grids_and_fractional_widths_are_read),
        cmocka_unit_test(calibration_is_needed_when_and_only_when_kmeans_is_used),
        cmocka_unit_test(sizes_are_decimal_or_binary_as_their_unit_says),
        cmocka_unit_test(sweeps_ascend_in_steps),
        cmocka_unit_test(one_line_tells_when_usage_is_wrong),
        cmocka_unit_test(command_line_wins_when_job_file_says_otherwise),
        cmocka_unit_test(lines_of_a_job_file_are_read_whole_and_one_by_one),
        cmocka_unit_test(a_wrong_line_of_a_job_file_is_named),
        cmocka_unit_test(a_path_that_is_too_long_is_refused_and_not_cut),
        cmocka_unit_test(provenance_changes_when_and_only_when_contents_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
