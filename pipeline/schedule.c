/* The split of layers over stages and the one-forward-one-backward order. Knows counts and costs, not what a
 * pass computes or how activations travel.
 *
 * The split is found by giving out the layers one by one, each to the stage that is cheapest so far, the first
 * among equals. No other split is better: the stage that ends up most expensive was the cheapest one before its
 * last layer, so wherever that layer goes instead, that stage becomes as expensive.
 *
 * Source: Narayanan et al. 2021, "Memory-efficient pipeline-parallel DNN training", for the order
 * (PipeDream-flush). */
#include "pipeline/schedule.h"

#include "base/memory.h"

/* ---- ranks and shares ---- */

bool decant_schedule_grid(int ranks, int layers, int replicas, decant_rank_grid *grid)
{
    if (replicas == 0)
        for (replicas = 1; ranks % replicas != 0 || ranks / replicas > layers;)
            replicas++;
    *grid = (decant_rank_grid){.stages = ranks / replicas, .replicas = replicas};
    return ranks % replicas == 0;
}

void decant_schedule_share(int64_t count, int parts, int part, int64_t *first, int64_t *share)
{
    int64_t each = count / parts, larger = count % parts;
    *first = part * each + (part < larger ? part : larger);
    *share = each + (part < larger);
}

static int cheapest_of(const double *loads, int replicas)
{
    int cheapest = 0;
    for (int replica = 1; replica < replicas; replica++)
        if (loads[replica] < loads[cheapest])
            cheapest = replica;
    return cheapest;
}

/* The most expensive matrix of a block that has no owner yet, the first among equals; -1: all have one. */
static int dearest_without_owner(const double *costs, const int *owners, int linears)
{
    int dearest = -1;
    for (int i = 0; i < linears; i++)
        if (owners[i] < 0 && (dearest < 0 || costs[i] > costs[dearest]))
            dearest = i;
    return dearest;
}

void decant_schedule_owners(const double *costs, int blocks, int linears, int replicas, double *loads,
                            int *owners)
{
    for (int replica = 0; replica < replicas; replica++)
        loads[replica] = 0;
    for (int i = 0; i < blocks * linears; i++)
        owners[i] = -1;
    for (int block = blocks - 1; block >= 0; block--) {
        const double *own_costs = costs + block * linears;
        int *own = owners + block * linears, next;
        while ((next = dearest_without_owner(own_costs, own, linears)) >= 0) {
            own[next] = cheapest_of(loads, replicas);
            loads[own[next]] += own_costs[next];
        }
    }
}

/* ---- layers ---- */

void decant_schedule_layers(int layers, int stages, double layer_cost, double first_cost, double last_cost,
                            decant_layer_range *ranges)
{
    int active = layers < stages ? layers : stages;
    for (int s = 0; s < stages; s++)
        ranges[s].count = s < active;
    for (int given = active; given < layers; given++) {
        int cheapest = 0;
        double least = 0;
        for (int s = 0; s < active; s++) {
            /* Not added up layer by layer, so that equal stages compare equal. */
            double cost = ranges[s].count * layer_cost + (s == 0 ? first_cost : 0);
            cost += s == active - 1 ? last_cost : 0;
            if (s == 0 || cost < least) {
                cheapest = s;
                least = cost;
            }
        }
        ranges[cheapest].count++;
    }
    for (int s = 0; s < stages; s++)
        ranges[s].first = s == 0 ? 0 : ranges[s - 1].first + ranges[s - 1].count;
}

int decant_schedule_active_stages(const decant_layer_range *ranges, int stages)
{
    int active = 0;
    for (int s = 0; s < stages; s++)
        active += ranges[s].count > 0;
    return active;
}

double decant_schedule_block_cost(const decant_model_config *config, int64_t tokens)
{
    double hidden = (double)config->hidden_size, length = (double)tokens;
    double queries = (double)config->heads * config->head_dimension;
    double keys = (double)config->key_value_heads * config->head_dimension;
    double mlp = (config->plain_mlp ? 2 : 3) * hidden * (double)config->intermediate_size;
    double weights = 2 * hidden * queries + 2 * hidden * keys + mlp;
    double attention = queries * (length + 1); /* scores and values over (T + 1) / 2 keys on average */
    return length * (weights + attention);
}

double decant_schedule_head_cost(const decant_model_config *config, int64_t tokens)
{
    return (double)tokens * (double)config->hidden_size * (double)config->vocabulary_size;
}

/* ---- micro-batches ---- */

/* Rows that make a product worth a large device; more only take memory. */
static const int64_t MICRO_BATCH_TOKENS = 2048;

int64_t decant_schedule_micro_batch_size(int64_t length)
{
    return length < MICRO_BATCH_TOKENS ? MICRO_BATCH_TOKENS / length : 1;
}

int64_t decant_schedule_micro_batches(int64_t sequences, int64_t size)
{
    return (sequences + size - 1) / size;
}

decant_micro_batch decant_schedule_micro_batch(int64_t sequences, int64_t size, int64_t index)
{
    decant_micro_batch batch = {.first = index * size, .count = size};
    if (batch.first + batch.count > sequences)
        batch.count = sequences - batch.first;
    return batch;
}

/* ---- steps ---- */

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t decant_schedule_in_flight(int stages, int stage, int slack, int64_t batches)
{
    const int after = stages - stage - 1;
    return smaller(after + 1 + smaller(slack, after), batches);
}

decant_step decant_schedule_step(int64_t in_flight, int64_t batches, int64_t index)
{
    int64_t ahead = in_flight > 0 ? in_flight - 1 : 0; /* passed forward before the first backward pass */
    if (index < ahead)
        return (decant_step){DECANT_FORWARD, index};
    int64_t pair = (index - ahead) / 2;
    if (pair >= batches - ahead)
        return (decant_step){DECANT_BACKWARD, index - batches};
    if ((index - ahead) % 2 == 0)
        return (decant_step){DECANT_FORWARD, ahead + pair};
    return (decant_step){DECANT_BACKWARD, pair};
}

/* ---- simulation ---- */

/* A pipeline on its way: stage s has done taken[s] steps, the last of which ended at free_s[s]. */
typedef struct pipeline {
    int stages, slack;
    int64_t batches;
    double message_s;
    int64_t *taken;     /* [stages] */
    double *free_s;     /* [stages] */
    double *forward_s;  /* [stages, batches]: when that pass ended; < 0 before */
    double *backward_s; /* [stages, batches] */
} pipeline;

/* When the input of a step is there; < 0 when its source has not got that far. */
static double input_ready(const pipeline *line, int stage, decant_step step)
{
    if (step.direction == DECANT_FORWARD && stage == 0)
        return 0;
    if (step.direction == DECANT_BACKWARD && stage == line->stages - 1)
        return line->forward_s[stage * line->batches + step.batch];
    double end_s = step.direction == DECANT_FORWARD
                       ? line->forward_s[(stage - 1) * line->batches + step.batch]
                       : line->backward_s[(stage + 1) * line->batches + step.batch];
    return end_s < 0 ? end_s : end_s + line->message_s;
}

/* Takes all steps of a stage that can be taken now; returns how many. */
static int64_t advance(pipeline *line, int stage, double forward_s, double backward_s)
{
    const int64_t in_flight = decant_schedule_in_flight(line->stages, stage, line->slack, line->batches);
    int64_t before = line->taken[stage];
    while (line->taken[stage] < 2 * line->batches) {
        decant_step step = decant_schedule_step(in_flight, line->batches, line->taken[stage]);
        double start_s = input_ready(line, stage, step);
        if (start_s < 0)
            break;
        if (start_s < line->free_s[stage])
            start_s = line->free_s[stage];
        bool is_forward = step.direction == DECANT_FORWARD;
        double *end_s = is_forward ? line->forward_s : line->backward_s;
        line->free_s[stage] = start_s + (is_forward ? forward_s : backward_s);
        end_s[stage * line->batches + step.batch] = line->free_s[stage];
        line->taken[stage]++;
    }
    return line->taken[stage] - before;
}

decant_status decant_schedule_idle_share(int stages, int slack, int64_t batches, const double *forward_s,
                                         const double *backward_s, double message_s, double *idle,
                                         decant_error *err)
{
    int64_t passes = stages * batches, steps = 0, progress = 1;
    double last_s = 0;
    void *numbers;
    decant_status status =
        decant_memory_allocate((size_t)(2 * passes + 2 * stages) * 8, "the simulated pipeline", &numbers, err);
    if (status != DECANT_OK)
        return status;
    double *ends_s = numbers;
    pipeline line = {
        .stages = stages,
        .slack = slack,
        .batches = batches,
        .message_s = message_s,
        .free_s = ends_s + 2 * passes,
        .forward_s = ends_s,
        .backward_s = ends_s + passes,
    };
    line.taken = (int64_t *)(line.free_s + stages);
    for (int64_t i = 0; i < 2 * passes; i++)
        ends_s[i] = -1;
    for (; progress > 0; steps += progress) {
        progress = 0;
        for (int s = 0; s < stages; s++)
            progress += advance(&line, s, forward_s[s], backward_s[s]);
    }
    for (int s = 0; s < stages; s++)
        last_s = line.free_s[s] > last_s ? line.free_s[s] : last_s;
    for (int s = 0; s < stages; s++)
        idle[s] = last_s > 0 ? 1 - (double)batches * (forward_s[s] + backward_s[s]) / last_s : 0;
    decant_memory_free(numbers);
    if (steps != 2 * passes)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the schedule of %d stages does not end", stages);
    return DECANT_OK;
}
