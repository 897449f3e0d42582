/* schedule_check.c - what the runner and the other ranks rely on, checked on the finished list:
 * completeness, dependencies that point back and cover what each stage reads, and that no more
 * operations are open than there are buffers.
 */
#include "schedule/schedule.h"

#include <stdlib.h>

static enum status check_fail(const struct op *op, const char *what)
{
    return error_set(ERR_BUG, "schedule: op %d, %s(%d) of layer %d: %s", op->index,
                     stage_name(op->stage), op->mb, op->layer, what);
}

static bool stage_belongs(const struct schedule *s, const bool *moe, enum stage stage, int layer)
{
    bool decode = s->kind == SCHEDULE_DECODE_SEQUENTIAL || s->kind == SCHEDULE_DECODE_FIVE_STAGE;
    if (stage == STAGE_EMBED) return layer == -1;
    if (stage == STAGE_HEAD) return layer == s->layers;
    if (layer < 0 || layer >= s->layers) return false;
    switch (stage) {
    case STAGE_ATTN: return !decode;
    case STAGE_ATTN_0:
    case STAGE_ATTN_1: return decode;
    case STAGE_DENSE_MLP: return !moe[layer];
    default: return moe[layer];
    }
}

/* Every op that belongs is there once, none that does not. */
static enum status check_complete(const struct schedule *s, const bool *moe)
{
    size_t n = (size_t)(s->layers + 2) * SCHEDULE_MAX_MB * STAGE_COUNT;
    unsigned char *seen = calloc(n, 1);
    if (!seen) return error_set(ERR_RESOURCE, "schedule: no memory to check %d ops", s->n_ops);
    enum status st = OK;
    for (int i = 0; i < s->n_ops && st == OK; i++) {
        const struct op *op = &s->ops[i];
        if (op->index != i || op->mb < 0 || op->mb >= s->micro_batches ||
            (unsigned)op->stage >= STAGE_COUNT || !stage_belongs(s, moe, op->stage, op->layer)) {
            st = check_fail(op, "does not belong here");
            break;
        }
        size_t at = ((size_t)(op->layer + 1) * SCHEDULE_MAX_MB + (size_t)op->mb) * STAGE_COUNT;
        if (seen[at + op->stage]++) st = check_fail(op, "appears twice");
    }
    for (int layer = -1; layer <= s->layers && st == OK; layer++)
        for (int mb = 0; mb < s->micro_batches && st == OK; mb++)
            for (int stage = 0; stage < STAGE_COUNT && st == OK; stage++) {
                size_t at = ((size_t)(layer + 1) * SCHEDULE_MAX_MB + (size_t)mb) * STAGE_COUNT;
                if (stage_belongs(s, moe, (enum stage)stage, layer) && !seen[at + (size_t)stage])
                    st = error_set(ERR_BUG, "schedule: %s(%d) of layer %d is missing",
                                   stage_name((enum stage)stage), mb, layer);
            }
    free(seen);
    return st;
}

static bool op_needs(const struct schedule *s, const struct op *op, enum stage stage, int mb,
                     int layer)
{
    for (int i = 0; i < op->n_deps; i++) {
        const struct op *dep = &s->ops[op->deps[i]];
        if (dep->stage == stage && dep->mb == mb && dep->layer == layer) return true;
    }
    return false;
}

/* The op waits for everything that it reads. */
static bool op_inputs_covered(const struct schedule *s, const bool *moe, const struct op *op)
{
    enum stage attn = s->kind == SCHEDULE_DECODE_SEQUENTIAL || s->kind == SCHEDULE_DECODE_FIVE_STAGE
                          ? STAGE_ATTN_1
                          : STAGE_ATTN;
    int mb = op->mb, layer = op->layer, before = op->layer - 1;
    switch (op->stage) {
    case STAGE_ATTN:
        if (mb == 1 && !op_needs(s, op, STAGE_ATTN, 0, layer)) return false;
        /* fall through */
    case STAGE_ATTN_0:
    case STAGE_HEAD:
        if (before < 0) return op_needs(s, op, STAGE_EMBED, mb, -1);
        if (!moe[before]) return op_needs(s, op, STAGE_DENSE_MLP, mb, before);
        return op_needs(s, op, STAGE_COMBINE, mb, before) &&
               op_needs(s, op, STAGE_SHARED, mb, before);
    case STAGE_ATTN_1: return op_needs(s, op, STAGE_ATTN_0, mb, layer);
    case STAGE_DISPATCH:
    case STAGE_SHARED:
    case STAGE_DENSE_MLP: return op_needs(s, op, attn, mb, layer);
    case STAGE_MLP: return op_needs(s, op, STAGE_DISPATCH, mb, layer);
    case STAGE_COMBINE: return op_needs(s, op, STAGE_MLP, mb, layer);
    default: return true;
    }
}

static enum status check_deps(const struct schedule *s, const bool *moe)
{
    for (int i = 0; i < s->n_ops; i++) {
        const struct op *op = &s->ops[i];
        if (op->n_deps < 0 || op->n_deps > SCHEDULE_MAX_DEPS)
            return check_fail(op, "has too many dependencies");
        for (int d = 0; d < op->n_deps; d++)
            if (op->deps[d] < 0 || op->deps[d] >= i)
                return check_fail(op, "depends on an op that does not come before it");
        if (!op_inputs_covered(s, moe, op)) return check_fail(op, "misses a dependency");
    }
    return OK;
}

static enum status check_lanes(const struct schedule *s)
{
    int at[OP_LANES] = {0};
    for (int i = 0; i < s->n_ops; i++) {
        const struct op *op = &s->ops[i];
        if (op->lane != (stage_is_comm(op->stage) ? OP_COMM : OP_COMPUTE))
            return check_fail(op, "is on the wrong lane");
        if (at[op->lane] >= s->n_lane[op->lane] || s->lane[op->lane][at[op->lane]++] != i)
            return check_fail(op, "is not in its lane's order");
    }
    if (at[OP_COMPUTE] != s->n_lane[OP_COMPUTE] || at[OP_COMM] != s->n_lane[OP_COMM])
        return error_set(ERR_BUG, "schedule: a lane lists more ops than there are");
    return OK;
}

/* Between an operation's earliest begin and its consumer at most SCHEDULE_MAX_OPEN are open:
 * nobody has to wait for one early because the buffers are taken. */
static enum status check_open(const struct schedule *s)
{
    int next = 0, open[SCHEDULE_MAX_OPEN], n_open = 0;
    for (int i = 0; i < s->n_ops; i++) {
        const struct op *op = &s->ops[i];
        if (op->lane == OP_COMM) continue;
        /* Begun by now: communication ops in order whose computations came before op i. */
        for (; next < s->n_lane[OP_COMM]; next++) {
            const struct op *comm = &s->ops[s->lane[OP_COMM][next]];
            bool ready = true;
            for (int d = 0; d < comm->n_deps; d++) ready = ready && comm->deps[d] < i;
            if (!ready) break;
            if (n_open == SCHEDULE_MAX_OPEN)
                return check_fail(comm, "would be open beside two others");
            open[n_open++] = comm->index;
        }
        for (int d = 0; d < op->n_deps; d++)
            for (int k = 0; k < n_open; k++)
                if (open[k] == op->deps[d]) open[k--] = open[--n_open];
    }
    return OK;
}

enum status schedule_check(const struct schedule *s, const bool *moe)
{
    TRY(check_complete(s, moe));
    TRY(check_deps(s, moe));
    TRY(check_lanes(s));
    return check_open(s);
}
