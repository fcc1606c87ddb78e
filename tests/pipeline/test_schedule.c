/* The split of layers against all splits, and the one-forward-one-backward order by playing it through. */
#include "base/memory.h"
#include "pipeline/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGES_AHEAD = 3 }; /* pipeline/channel.c */
enum { LAYERS_MAXIMUM = 80, STAGES_MAXIMUM = 70, SEQUENCES_MAXIMUM = 24 };

/* ---- layers ---- */

static double stage_cost(const int *counts, int active, int stage, const double cost[3])
{
    return counts[stage] * cost[0] + (stage == 0 ? cost[1] : 0) + (stage == active - 1 ? cost[2] : 0);
}

static int descending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a < b) - (a > b);
}

/* < 0 when the split a is better than b: cheaper most expensive stages first, then more layers in earlier
 * stages. */
static int compare_splits(const int *a, const int *b, int active, const double cost[3])
{
    double costs_a[STAGES_MAXIMUM], costs_b[STAGES_MAXIMUM];
    for (int s = 0; s < active; s++) {
        costs_a[s] = stage_cost(a, active, s, cost);
        costs_b[s] = stage_cost(b, active, s, cost);
    }
    qsort(costs_a, (size_t)active, sizeof *costs_a, descending);
    qsort(costs_b, (size_t)active, sizeof *costs_b, descending);
    for (int s = 0; s < active; s++)
        if (costs_a[s] != costs_b[s])
            return costs_a[s] < costs_b[s] ? -1 : 1;
    for (int s = 0; s < active; s++)
        if (a[s] != b[s])
            return a[s] > b[s] ? -1 : 1;
    return 0;
}

/* Tries every way to give the stages from `stage` on the `left` layers, at least one each. */
static void try_splits(int *counts, int stage, int active, int left, const double cost[3], int *best)
{
    if (stage == active - 1) {
        counts[stage] = left;
        if (best[0] == 0 || compare_splits(counts, best, active, cost) < 0)
            memcpy(best, counts, (size_t)active * sizeof *counts);
        return;
    }
    for (counts[stage] = 1; counts[stage] <= left - (active - stage - 1); counts[stage]++)
        try_splits(counts, stage + 1, active, left - counts[stage], cost, best);
}

static void layers_are_split_as_well_as_can_be(void **state)
{
    (void)state;
    /* Quarters, so that costs are exact and equal stages are equal. */
    static const double costs[][3] = {{1, 0, 0},        {1, 0.25, 3.5}, {2, 7, 0.5},
                                      {0.75, 1.5, 1.5}, {1, 4, 30},     {3, 0, 3}};
    for (size_t c = 0; c < sizeof costs / sizeof *costs; c++)
        for (int layers = 1; layers <= 12; layers++)
            for (int stages = 1; stages <= 6; stages++) {
                decant_layer_range ranges[6];
                int counts[6], best[6] = {0}, active = layers < stages ? layers : stages;
                try_splits(counts, 0, active, layers, costs[c], best);
                decant_schedule_layers(layers, stages, costs[c][0], costs[c][1], costs[c][2], ranges);
                for (int s = 0; s < stages; s++)
                    assert_int_equal(ranges[s].count, s < active ? best[s] : 0);
            }
}

static void every_layer_has_one_stage(void **state)
{
    (void)state;
    for (int layers = 1; layers <= LAYERS_MAXIMUM; layers++)
        for (int stages = 1; stages <= STAGES_MAXIMUM; stages++) {
            decant_layer_range ranges[STAGES_MAXIMUM];
            decant_schedule_layers(layers, stages, 3.7, 0.2, 11.3, ranges);
            int active = decant_schedule_active_stages(ranges, stages), next = 0;
            assert_int_equal(active, layers < stages ? layers : stages);
            for (int s = 0; s < stages; s++) {
                assert_int_equal(ranges[s].first, next);
                assert_true(s < active ? ranges[s].count > 0 : ranges[s].count == 0);
                next += ranges[s].count;
            }
            assert_int_equal(next, layers);
        }
}

static void earlier_stages_take_more_when_layers_do_not_divide(void **state)
{
    (void)state;
    static const int expected[] = {3, 3, 2, 2};
    decant_layer_range ranges[4];
    decant_schedule_layers(10, 4, 1, 0, 0, ranges);
    for (int s = 0; s < 4; s++)
        assert_int_equal(ranges[s].count, expected[s]);
}

static void costs_count_multiply_adds(void **state)
{
    (void)state;
    const decant_model_config config = {.hidden_size = 8,
                                        .intermediate_size = 20,
                                        .vocabulary_size = 100,
                                        .heads = 4,
                                        .key_value_heads = 2,
                                        .head_dimension = 3};
    int64_t tokens = 5, attention = 0;
    for (int64_t t = 0; t < tokens; t++)
        attention += 2 * (t + 1) * 4 * 3; /* scores and values of t + 1 keys */
    int64_t weights = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 3 * 8 * 20;
    assert_true(decant_schedule_block_cost(&config, tokens) == (double)(tokens * weights + attention));
    assert_true(decant_schedule_head_cost(&config, tokens) == (double)(tokens * 8 * 100));
}

/* ---- steps ---- */

static void micro_batches_cover_all_sequences_in_order(void **state)
{
    (void)state;
    assert_int_equal(decant_schedule_micro_batch_size(1), 2048);
    assert_int_equal(decant_schedule_micro_batch_size(512), 4);
    assert_int_equal(decant_schedule_micro_batch_size(600), 3);
    assert_int_equal(decant_schedule_micro_batch_size(2048), 1);
    assert_int_equal(decant_schedule_micro_batch_size(100000), 1);
    for (int64_t sequences = 1; sequences <= SEQUENCES_MAXIMUM; sequences++)
        for (int64_t size = 1; size <= 7; size++) {
            int64_t next = 0, batches = decant_schedule_micro_batches(sequences, size);
            for (int64_t i = 0; i < batches; i++) {
                decant_micro_batch batch = decant_schedule_micro_batch(sequences, size, i);
                assert_int_equal(batch.first, next);
                assert_true(i + 1 < batches ? batch.count == size : batch.count >= 1 && batch.count <= size);
                next += batch.count;
            }
            assert_int_equal(next, sequences);
        }
}

static void ranks_form_a_grid(void **state)
{
    (void)state;
    decant_rank_grid grid;
    static const int cases[][4] = {/* ranks, layers, stages, replicas */
                                   {1, 1, 1, 1}, {8, 32, 8, 1}, {32, 32, 32, 1}, {64, 32, 32, 2},
                                   {4, 3, 2, 2}, {5, 3, 1, 5},  {96, 40, 32, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_true(decant_schedule_grid(cases[i][0], cases[i][1], 0, &grid));
        assert_int_equal(grid.stages, cases[i][2]);
        assert_int_equal(grid.replicas, cases[i][3]);
    }
    assert_true(decant_schedule_grid(4, 3, 1, &grid)); /* asked for: one stage has no layers */
    assert_int_equal(grid.stages, 4);
    assert_false(decant_schedule_grid(6, 3, 4, &grid));
    assert_false(decant_schedule_grid(2, 3, 4, &grid));
}

static void shares_are_consecutive_and_even(void **state)
{
    (void)state;
    for (int64_t count = 0; count <= SEQUENCES_MAXIMUM; count++)
        for (int parts = 1; parts <= 9; parts++) {
            int64_t next = 0, first, share, before = count;
            for (int part = 0; part < parts; part++) {
                decant_schedule_share(count, parts, part, &first, &share);
                assert_int_equal(first, next);
                assert_true(share == count / parts || share == count / parts + 1);
                assert_true(share <= before);
                before = share;
                next += share;
            }
            assert_int_equal(next, count);
        }
}

/* LLaMA's matrices: with whole matrices over many layers no replica has more than one matrix too much. */
static void matrices_are_shared_out_evenly(void **state)
{
    (void)state;
    enum { LINEARS = 7, BLOCKS = 10 };
    static const double block[LINEARS] = {16, 16, 16, 16, 43, 43, 43};
    double costs[BLOCKS * LINEARS], loads[8], sums[8];
    int owners[BLOCKS * LINEARS];
    for (int i = 0; i < BLOCKS * LINEARS; i++)
        costs[i] = block[i % LINEARS];
    for (int replicas = 1; replicas <= 8; replicas++) {
        memset(sums, 0, sizeof sums);
        decant_schedule_owners(costs, BLOCKS, LINEARS, replicas, loads, owners);
        for (int i = 0; i < BLOCKS * LINEARS; i++) {
            assert_in_range(owners[i], 0, replicas - 1);
            sums[owners[i]] += costs[i];
        }
        double least = sums[0], most = sums[0];
        for (int r = 0; r < replicas; r++) {
            assert_true(sums[r] == loads[r]);
            least = sums[r] < least ? sums[r] : least;
            most = sums[r] > most ? sums[r] : most;
        }
        assert_true(most - least <= 43);
    }
    decant_schedule_owners(costs, 1, LINEARS, 2, loads, owners); /* 86 + 16 and 43 + 48 */
    static const int expected[LINEARS] = {1, 1, 1, 0, 0, 1, 0};
    for (int i = 0; i < LINEARS; i++)
        assert_int_equal(owners[i], expected[i]);
}

static void one_stage_passes_every_sequence_once_each_way(int stages, int stage, int slack, int64_t sequences)
{
    int64_t forward = 0, backward = 0, waiting_most = 0;
    int64_t in_flight = decant_schedule_in_flight(stages, stage, slack, sequences);
    for (int64_t i = 0; i < 2 * sequences; i++) {
        decant_step step = decant_schedule_step(in_flight, sequences, i);
        int64_t *next = step.direction == DECANT_FORWARD ? &forward : &backward;
        assert_int_equal(step.batch, *next);
        (*next)++;
        assert_true(backward <= forward);
        waiting_most = forward - backward > waiting_most ? forward - backward : waiting_most;
    }
    assert_int_equal(forward, sequences);
    assert_int_equal(backward, sequences);
    assert_int_equal(waiting_most, in_flight);
    assert_true(waiting_most <= stages - stage + slack && waiting_most <= 2 * (stages - stage) - 1);
}

static void every_sequence_passes_once_each_way(void **state)
{
    (void)state;
    for (int stages = 1; stages <= 9; stages++)
        for (int64_t sequences = 0; sequences <= SEQUENCES_MAXIMUM; sequences++)
            for (int stage = 0; stage < stages; stage++)
                for (int slack = 0; slack < stages; slack++)
                    one_stage_passes_every_sequence_once_each_way(stages, stage, slack, sequences);
}

/* Stages that take whatever step is possible, when a stage may be so many messages ahead of its neighbour. */
static int64_t steps_until_stuck(int stages, int slack, int64_t sequences)
{
    int64_t taken[STAGES_MAXIMUM] = {0}, forward[STAGES_MAXIMUM] = {0}, backward[STAGES_MAXIMUM] = {0},
            steps = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int s = 0; s < stages; s++) {
            if (taken[s] == 2 * sequences)
                continue;
            int64_t in_flight = decant_schedule_in_flight(stages, s, slack, sequences);
            decant_step step = decant_schedule_step(in_flight, sequences, taken[s]);
            bool is_forward = step.direction == DECANT_FORWARD;
            bool is_far_ahead = is_forward ? s < stages - 1 && forward[s] - forward[s + 1] >= MESSAGES_AHEAD
                                           : s > 0 && backward[s] - backward[s - 1] >= MESSAGES_AHEAD;
            int64_t there = is_forward ? (s == 0 ? sequences : forward[s - 1])
                                       : (s == stages - 1 ? forward[s] : backward[s + 1]);
            if (step.batch >= there || is_far_ahead)
                continue;
            (is_forward ? forward : backward)[s]++;
            taken[s]++;
            steps++;
            moved = true;
        }
    }
    return steps;
}

static void nobody_waits_for_ever(void **state)
{
    (void)state;
    for (int stages = 1; stages <= 16; stages++)
        for (int64_t sequences = 1; sequences <= SEQUENCES_MAXIMUM; sequences++)
            for (int slack = 0; slack < stages; slack++)
                assert_int_equal(steps_until_stuck(stages, slack, sequences), 2 * stages * sequences);
    assert_int_equal(steps_until_stuck(STAGES_MAXIMUM, 0, 3), 2 * STAGES_MAXIMUM * 3);
    assert_int_equal(steps_until_stuck(STAGES_MAXIMUM, 0, 200), 2 * STAGES_MAXIMUM * 200);
    assert_int_equal(steps_until_stuck(STAGES_MAXIMUM, STAGES_MAXIMUM - 1, 200), 2 * STAGES_MAXIMUM * 200);
}

/* ---- idle time ---- */

static const double SHARE_TOLERANCE = 1e-12;

/* The bubble of Narayanan et al.: (p − 1) of m + p − 1 sequences' time when all stages are equal. */
static void idle_share_is_the_known_bubble_when_stages_are_equal(void **state)
{
    (void)state;
    double forward_s[8], backward_s[8], idle[8];
    decant_error err;
    for (int stages = 1; stages <= 8; stages++)
        for (int64_t sequences = 1; sequences <= SEQUENCES_MAXIMUM; sequences++) {
            int slack = (int)(sequences % stages); /* makes no difference */
            for (int s = 0; s < stages; s++) {
                forward_s[s] = 0.5;
                backward_s[s] = 1.5;
            }
            assert_int_equal(
                decant_schedule_idle_share(stages, slack, sequences, forward_s, backward_s, 0, idle, &err),
                DECANT_OK);
            for (int s = 0; s < stages; s++)
                assert_true(fabs(idle[s] - (stages - 1.0) / ((double)sequences + stages - 1)) <
                            SHARE_TOLERANCE);
        }
}

/* Messages that take as long as half a pass of both directions are hidden by slack, and by nothing else. */
static void slack_hides_messages(void **state)
{
    (void)state;
    enum { STAGES = 8, SEQUENCES = 400 };
    double forward_s[STAGES], backward_s[STAGES], idle[STAGES];
    const double message_s = 1.5;
    decant_error err;
    for (int s = 0; s < STAGES; s++) {
        forward_s[s] = 1;
        backward_s[s] = 2;
    }
    assert_int_equal(
        decant_schedule_idle_share(STAGES, 0, SEQUENCES, forward_s, backward_s, message_s, idle, &err),
        DECANT_OK);
    assert_true(idle[0] > 0.4);
    assert_int_equal(
        decant_schedule_idle_share(STAGES, STAGES - 1, SEQUENCES, forward_s, backward_s, message_s, idle, &err),
        DECANT_OK);
    assert_true(idle[0] < 0.05);
}

/* Two stages and two sequences, by hand: the first passes forward at 0–1 and 1–2, the second works at 1–4
 * (forward, backward), then 4–7; the first passes backward at 4–5 and 7–8. */
static void idle_share_follows_the_dependencies(void **state)
{
    (void)state;
    const double forward_s[] = {1, 1}, backward_s[] = {1, 2};
    double idle[2];
    decant_error err;
    assert_int_equal(decant_schedule_idle_share(2, 0, 2, forward_s, backward_s, 0, idle, &err), DECANT_OK);
    assert_true(fabs(idle[0] - 4.0 / 8) < SHARE_TOLERANCE);
    assert_true(fabs(idle[1] - 2.0 / 8) < SHARE_TOLERANCE);
}

static void busiest_stage_is_hardly_idle_when_sequences_are_many(void **state)
{
    (void)state;
    const double forward_s[] = {1, 1.5, 1, 0.5}, backward_s[] = {2, 3, 2, 1};
    double idle[4];
    decant_error err;
    assert_int_equal(decant_schedule_idle_share(4, 0, 2000, forward_s, backward_s, 0, idle, &err), DECANT_OK);
    assert_true(idle[1] < 0.002);
    assert_true(fabs(idle[0] - 1.0 / 3) < 0.002);
    assert_true(fabs(idle[3] - 2.0 / 3) < 0.002);
}

static void idle_share_is_zero_when_nothing_is_done(void **state)
{
    (void)state;
    const double forward_s[] = {1, 1}, backward_s[] = {1, 1}, nothing_s[] = {0, 0};
    double idle[2] = {-1, -1};
    decant_error err;
    assert_int_equal(decant_schedule_idle_share(2, 0, 0, forward_s, backward_s, 0, idle, &err), DECANT_OK);
    assert_true(idle[0] == 0 && idle[1] == 0);
    assert_int_equal(decant_schedule_idle_share(2, 0, 5, nothing_s, nothing_s, 0, idle, &err), DECANT_OK);
    assert_true(idle[0] == 0 && idle[1] == 0);
}

/* The last test: what the others took is given back. */
static void no_memory_is_held(void **state)
{
    (void)state;
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_are_split_as_well_as_can_be),
        cmocka_unit_test(every_layer_has_one_stage),
        cmocka_unit_test(earlier_stages_take_more_when_layers_do_not_divide),
        cmocka_unit_test(costs_count_multiply_adds),
        cmocka_unit_test(micro_batches_cover_all_sequences_in_order),
        cmocka_unit_test(ranks_form_a_grid),
        cmocka_unit_test(shares_are_consecutive_and_even),
        cmocka_unit_test(matrices_are_shared_out_evenly),
        cmocka_unit_test(every_sequence_passes_once_each_way),
        cmocka_unit_test(nobody_waits_for_ever),
        cmocka_unit_test(idle_share_is_the_known_bubble_when_stages_are_equal),
        cmocka_unit_test(slack_hides_messages),
        cmocka_unit_test(idle_share_follows_the_dependencies),
        cmocka_unit_test(busiest_stage_is_hardly_idle_when_sequences_are_many),
        cmocka_unit_test(idle_share_is_zero_when_nothing_is_done),
        cmocka_unit_test(no_memory_is_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
