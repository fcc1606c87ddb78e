/* base/ranks under mpirun. ranks: 1 2 3 4 */
#include "tests/ranks/mpi_tests.h"

#include <string.h>

static void agreement_is_ok_when_no_rank_failed(void **state)
{
    decant_error err = {.line = 7};
    assert_ok(decant_ranks_agree(*state, DECANT_OK, &err));
    assert_int_equal(err.line, 7); /* untouched */
}

static void all_hold_the_record_when_one_rank_failed(void **state)
{
    decant_ranks *ranks = *state;
    for (int bad = 0; bad < ranks->size; bad++) {
        decant_error err = {0};
        decant_status status = DECANT_OK;
        if (ranks->rank == bad)
            status = DECANT_ERROR(&err, DECANT_ERROR_DISK, "trouble on %d", bad);
        assert_status(decant_ranks_agree(ranks, status, &err), DECANT_ERROR_DISK);
        char expected[64];
        snprintf(expected, sizeof expected, "trouble on %d", bad);
        assert_string_equal(err.message, expected);
        assert_int_equal(err.rank, bad);
        assert_int_equal(err.status, DECANT_ERROR_DISK);
        assert_int_not_equal(err.line, 0);
        assert_status(decant_ranks_agree(ranks, DECANT_ERROR_DISK, &err), DECANT_ERROR_DISK); /* once more */
        assert_int_equal(err.rank, bad);
    }
}

static void worst_status_wins_and_of_equal_ones_the_lowest_rank(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    /* The last two ranks fail worse than the others. */
    int first_bad = ranks->size > 2 ? ranks->size - 2 : 0;
    decant_status mine = ranks->rank >= first_bad ? DECANT_ERROR_MEMORY : DECANT_ERROR_INPUT;
    DECANT_ERROR(&err, mine, "rank %d", ranks->rank);
    assert_status(decant_ranks_agree(ranks, mine, &err), DECANT_ERROR_MEMORY);
    assert_int_equal(err.rank, first_bad);
    char expected[64];
    snprintf(expected, sizeof expected, "rank %d", first_bad);
    assert_string_equal(err.message, expected);
}

static void record_is_made_when_a_status_comes_without_one(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err = {0};
    assert_status(decant_ranks_agree(ranks, ranks->rank == 0 ? DECANT_INTERRUPTED : DECANT_OK, &err),
                  DECANT_INTERRUPTED);
    assert_string_equal(err.message, decant_status_sentence(DECANT_INTERRUPTED));
}

static void broadcast_reaches_all_from_every_root(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    for (int root = 0; root < ranks->size; root++) {
        int value[2] = {ranks->rank == root ? 100 + root : -1, ranks->rank};
        assert_ok(decant_ranks_broadcast(ranks, root, value, sizeof *value, &err));
        assert_int_equal(value[0], 100 + root);
        assert_int_equal(value[1], ranks->rank);
    }
    assert_ok(decant_ranks_broadcast(ranks, 0, NULL, 0, &err));
}

static void gather_keeps_rank_order_when_parts_are_empty(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    /* Rank r brings r letters, rank 0 none. */
    char part[16];
    memset(part, 'a' + ranks->rank, sizeof part);
    void *all;
    size_t all_bytes;
    assert_ok(
        decant_ranks_gather(ranks, ranks->rank ? part : NULL, (size_t)ranks->rank, &all, &all_bytes, &err));
    assert_int_equal(all_bytes, ranks->size * (ranks->size - 1) / 2);
    const char *at = all;
    for (int rank = 0; rank < ranks->size; rank++)
        for (int i = 0; i < rank; i++)
            assert_int_equal(*at++, 'a' + rank);
    decant_memory_free(all);
}

static void gather_of_nothing_is_empty(void **state)
{
    decant_error err;
    void *all;
    size_t all_bytes = 1;
    assert_ok(decant_ranks_gather(*state, NULL, 0, &all, &all_bytes, &err));
    assert_int_equal(all_bytes, 0);
    decant_memory_free(all);
}

static void sum_is_in_rank_order_on_every_rank(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    /* These do not add up to the same in another order. */
    static const double terms[] = {1e16, 1, -1e16, 3.5, 1, 1e-3, -2, 7};
    double values[2] = {terms[ranks->rank % 8], (double)ranks->rank};
    double expected = terms[0], ordered = 0;
    for (int rank = 1; rank < ranks->size; rank++) {
        expected += terms[rank % 8];
        ordered += rank;
    }
    assert_ok(decant_ranks_sum(ranks, values, 2, &err));
    assert_memory_equal(&values[0], &expected, sizeof expected);
    assert_true(values[1] == ordered);
    assert_ok(decant_ranks_require_equal(ranks, values, sizeof values, "a sum", &err));
    assert_ok(decant_ranks_sum(ranks, NULL, 0, &err));
}

static void maximum_is_of_all_ranks(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    int64_t values[3] = {ranks->rank, -ranks->rank - 5, INT64_MAX - ranks->rank};
    assert_ok(decant_ranks_maximum(ranks, values, 3, &err));
    assert_int_equal(values[0], ranks->size - 1);
    assert_int_equal(values[1], -5);
    assert_true(values[2] == INT64_MAX);
}

static void maxima_under_way_are_of_all_ranks_when_others_are_asked_between(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    int64_t values[2] = {ranks->rank, -ranks->rank - 5}, between = 7 - ranks->rank;
    decant_message messages[2];
    assert_ok(decant_ranks_begin_maximum(ranks, &values[0], &messages[0], &err));
    assert_ok(decant_ranks_begin_maximum(ranks, &values[1], &messages[1], &err));
    assert_ok(decant_ranks_maximum(ranks, &between, 1, &err));
    assert_int_equal(between, 7);
    assert_ok(decant_message_complete(&messages[1], &err));
    assert_ok(decant_message_complete(&messages[0], &err));
    assert_int_equal(values[0], ranks->size - 1);
    assert_int_equal(values[1], -5);
}

static void equality_is_refused_when_any_rank_differs(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    char text[8] = "options";
    assert_ok(decant_ranks_require_equal(ranks, text, sizeof text, "the options", &err));
    assert_ok(decant_ranks_require_equal(ranks, NULL, 0, "nothing", &err));
    for (int bad = 1; bad < ranks->size; bad++) {
        text[3] = ranks->rank == bad ? 'X' : 'i';
        assert_status(decant_ranks_require_equal(ranks, text, sizeof text, "the options", &err),
                      DECANT_ERROR_INPUT);
        assert_non_null(strstr(err.message, "the options"));
        assert_int_equal(err.rank, bad);
        size_t shorter = ranks->rank == bad ? 4 : sizeof text;
        assert_status(decant_ranks_require_equal(ranks, text, shorter, "a length", &err), DECANT_ERROR_INPUT);
    }
}

static void node_has_all_ranks_of_one_machine(void **state)
{
    decant_ranks *ranks = *state;
    assert_int_equal(ranks->node_size, ranks->size);
    assert_int_equal(ranks->node_rank, ranks->rank);
}

/* Each rank sends to the next, in a ring, two messages of one tag and one of another. */
static void messages_arrive_in_order_when_all_send_at_once(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    int next = (ranks->rank + 1) % ranks->size, previous = (ranks->rank + ranks->size - 1) % ranks->size;
    int sent[3] = {ranks->rank * 10, ranks->rank * 10 + 1, ranks->rank * 10 + 2}, got[3] = {-1, -1, -1};
    static const int tags[3] = {5, 5, 6};
    decant_message sending[3], receiving[3];
    for (int i = 0; i < 3; i++)
        assert_ok(decant_ranks_send(ranks, next, tags[i], &sent[i], sizeof sent[i], &sending[i], &err));
    static const int order[3] = {2, 0, 1}; /* the other tag first: it does not take the two before it */
    for (int turn = 0; turn < 3; turn++) {
        int i = order[turn];
        assert_ok(decant_ranks_receive(ranks, previous, tags[i], &got[i], sizeof got[i], &receiving[i], &err));
    }
    for (int i = 0; i < 3; i++) {
        assert_ok(decant_message_complete(&receiving[i], &err));
        assert_ok(decant_message_complete(&sending[i], &err));
        assert_ok(decant_message_complete(&sending[i], &err)); /* nothing to do any more */
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(got[i], previous * 10 + i);
}

static void message_fails_when_it_is_longer_than_its_buffer(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    int sent[2] = {1, 2}, got[1];
    decant_message sending, receiving;
    if (ranks->size == 1)
        skip(); /* Open MPI cuts a message of a rank to itself without a word */
    int next = (ranks->rank + 1) % ranks->size, previous = (ranks->rank + ranks->size - 1) % ranks->size;
    assert_ok(decant_ranks_receive(ranks, previous, 9, got, sizeof got, &receiving, &err));
    assert_ok(decant_ranks_send(ranks, next, 9, sent, sizeof sent, &sending, &err));
    assert_status(decant_message_complete(&receiving, &err), DECANT_ERROR_MPI);
    assert_non_null(strstr(err.message, "truncated"));
    decant_message_complete(&sending, &err);
}

/* More bytes than an int counts; between the last rank and itself or its neighbour. Needs 5 GB: asked for by
 * hand. */
static void message_beyond_2_gigabytes_arrives(void **state)
{
    decant_ranks *ranks = *state;
    decant_error err;
    if (!getenv("DECANT_TEST_LARGE") || ranks->size != 2)
        skip();
    size_t size_bytes = ((size_t)1 << 31) + 12345;
    void *block;
    decant_message message;
    assert_ok(decant_memory_allocate(size_bytes, "a large message", &block, &err));
    unsigned char *bytes = block;
    if (ranks->rank == 0) {
        for (size_t i = 0; i < size_bytes; i += 4093)
            bytes[i] = (unsigned char)(i / 4093);
        bytes[size_bytes - 1] = 77;
        assert_ok(decant_ranks_send(ranks, 1, 0, block, size_bytes, &message, &err));
    } else {
        assert_ok(decant_ranks_receive(ranks, 0, 0, block, size_bytes, &message, &err));
    }
    assert_ok(decant_message_complete(&message, &err));
    for (size_t i = 0; i + 1 < size_bytes; i += 4093)
        assert_int_equal(bytes[i], (unsigned char)(i / 4093));
    assert_int_equal(bytes[size_bytes - 1], 77);
    assert_ok(decant_ranks_broadcast(ranks, 1, block, size_bytes, &err));
    decant_memory_free(block);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agreement_is_ok_when_no_rank_failed),
        cmocka_unit_test(all_hold_the_record_when_one_rank_failed),
        cmocka_unit_test(worst_status_wins_and_of_equal_ones_the_lowest_rank),
        cmocka_unit_test(record_is_made_when_a_status_comes_without_one),
        cmocka_unit_test(broadcast_reaches_all_from_every_root),
        cmocka_unit_test(gather_keeps_rank_order_when_parts_are_empty),
        cmocka_unit_test(gather_of_nothing_is_empty),
        cmocka_unit_test(sum_is_in_rank_order_on_every_rank),
        cmocka_unit_test(maximum_is_of_all_ranks),
        cmocka_unit_test(maxima_under_way_are_of_all_ranks_when_others_are_asked_between),
        cmocka_unit_test(equality_is_refused_when_any_rank_differs),
        cmocka_unit_test(node_has_all_ranks_of_one_machine),
        cmocka_unit_test(messages_arrive_in_order_when_all_send_at_once),
        cmocka_unit_test(message_fails_when_it_is_longer_than_its_buffer),
        cmocka_unit_test(message_beyond_2_gigabytes_arrives),
    };
    return run_mpi_tests(argc, argv, tests);
}
