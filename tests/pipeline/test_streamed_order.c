/* The rounds of a streamed calibration, for every way to share out up to seven layers over stages, and from
 * every state that a job can be found in: a simulation of what each layer takes and leaves says whether it was
 * there. */
#include "pipeline/streamed_order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS_MOST = 7 };

/* Calls check for every share of 1 … LAYERS_MOST layers: bit l of `ends` says that layer l is the last of its
 * stage. */
static void each_layout(void (*check)(const decant_layer_range *ranges, int stages, int layers))
{
    for (int layers = 1; layers <= LAYERS_MOST; layers++)
        for (int ends = 1 << (layers - 1); ends < 1 << layers; ends++) {
            decant_layer_range ranges[LAYERS_MOST];
            int stages = 0, first = 0;
            for (int l = 0; l < layers; l++)
                if (ends >> l & 1) {
                    ranges[stages++] = (decant_layer_range){.first = first, .count = l + 1 - first};
                    first = l + 1;
                }
            check(ranges, stages, layers);
        }
}

static int stage_of(const decant_layer_range *ranges, int layer)
{
    int stage = 0;
    while (layer >= ranges[stage].first + ranges[stage].count)
        stage++;
    return stage;
}

/* Layers [first, end) are of stages of their own, and neighbours. */
static void assert_is_round(const decant_layer_range *ranges, int first, int end)
{
    assert_true(first < end);
    for (int layer = first + 1; layer < end; layer++)
        assert_int_equal(stage_of(ranges, layer), stage_of(ranges, layer - 1) + 1);
}

static void check_rounds(const decant_layer_range *ranges, int stages, int layers)
{
    int rounds = 0;
    for (int first = 0, next; first < layers; first = next, rounds++) {
        next = decant_streamed_forward_round(ranges, stages, first, layers);
        assert_is_round(ranges, first, next);
        /* Where a round ends, nothing is on its way between two stages. */
        assert_true(next == layers || stage_of(ranges, next) == stage_of(ranges, next - 1));
    }
    assert_int_equal(rounds, layers - (stages - 1));
    for (int left = layers, next; left > 0; left = next, rounds--) {
        next = decant_streamed_backward_round(ranges, stages, left);
        assert_is_round(ranges, next, left);
        assert_true(next == 0 || stage_of(ranges, next) == stage_of(ranges, next - 1));
    }
    assert_int_equal(rounds, 0);
}

/* What lies before layer k: nothing, what enters it, or the gradient of that. */
typedef enum lies { NOTHING, INPUT, GRADIENT } lies;

static void check_state(const decant_layer_range *ranges, int stages, int layers, decant_streamed_state state)
{
    lies before[LAYERS_MOST + 1] = {NOTHING};
    int first, end;
    for (int k = 0; k < state.boundaries; k++)
        before[k] = k == layers ? GRADIENT : INPUT;
    if (state.left < layers)
        before[state.left] = GRADIENT;
    decant_streamed_forward_rest(state, layers, &first, &end);
    for (int next; first < end; first = next) {
        next = decant_streamed_forward_round(ranges, stages, first, end);
        for (int layer = first; layer < next; layer++) {
            assert_true(layer == 0 || before[layer] == INPUT);
            assert_true(layer < state.left); /* none goes forward that has gone backward */
            before[layer] = INPUT;
            assert_int_not_equal(before[layer + 1], GRADIENT);
            before[layer + 1] = layer + 1 == layers ? GRADIENT : INPUT;
        }
    }
    for (int layer = state.left - 1; layer >= 0; layer--) {
        assert_int_equal(before[layer], INPUT);
        assert_int_equal(before[layer + 1], GRADIENT);
        before[layer] = GRADIENT;
    }
}

static void check_states(const decant_layer_range *ranges, int stages, int layers)
{
    for (int boundaries = 0; boundaries <= layers + 1; boundaries++)
        check_state(ranges, stages, layers, (decant_streamed_state){boundaries, layers});
    for (int left = 1; left < layers; left++)
        for (int boundaries = 1; boundaries <= left; boundaries++)
            check_state(ranges, stages, layers, (decant_streamed_state){boundaries, left});
    check_state(ranges, stages, layers, (decant_streamed_state){0, 0});
}

static void rounds_keep_to_stages(void **state)
{
    (void)state;
    each_layout(check_rounds);
}

static void every_state_goes_on(void **state)
{
    (void)state;
    each_layout(check_states);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounds_keep_to_stages),
        cmocka_unit_test(every_state_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
