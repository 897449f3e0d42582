/* links: core config device gemm moe transport ep */
/* ranks: 1 2 4 8 */
/* test_ep.c - every row that DISPATCH delivers and every value that COMBINE returns, compared
 * with a plain computation from the global routing, which every rank can make by itself.
 *
 *     mpirun -np 4 test_ep [CASE]      --list names the cases
 *
 * Tokens, routing and expert functions depend only on the token's global number, the case's seed
 * and the iteration. The expected output of a token therefore does not depend on ranks, nodes,
 * modes or replicas; equality with it is the bitwise equality of all layouts. The printed hash
 * is over all outputs of a case; it is the same for every node grouping, and for every rank count
 * too where the pattern gives all tokens to somebody whatever the ranks (all but RAGGED).
 */
#include "core/hash.h"
#include "core/numfmt.h"
#include "core/rng.h"
#include "ep/ep.h"

#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum pattern { ANY, HOT, EMPTY, RAGGED };
struct test_case {
    const char *name;
    enum dtype dispatch, combine, y;
    int experts, redundant, topk, n_group, hidden;
    int tokens; /* of the whole unit */
    enum pattern pattern;
    int modes; /* 1 normal, 2 low latency, 3 alternating */
    double factor;
    int align, iterations, jitter_us;
    int whole; /* 1: expert groups whole on a node where the nodes divide them */
};

static const struct test_case cases[] = {
    {"fp8-normal", DT_E4M3, DT_BF16, DT_F32, 16, 0, 4, 4, 200, 64, ANY, 1, 2, 1, 4, 0, 0},
    {"fp8-lowlat", DT_E4M3, DT_BF16, DT_F32, 16, 0, 4, 4, 200, 64, ANY, 2, 2, 1, 4, 0, 0},
    {"bf16-normal", DT_BF16, DT_BF16, DT_BF16, 16, 8, 3, 1, 96, 61, ANY, 1, 2, 4, 4, 0, 0},
    {"bf16-lowlat", DT_BF16, DT_BF16, DT_BF16, 16, 8, 3, 1, 96, 61, ANY, 2, 2, 4, 4, 0, 0},
    {"f32-normal", DT_F32, DT_F32, DT_F32, 32, 16, 8, 8, 130, 40, ANY, 1, 2, 1, 4, 0, 0},
    {"f32-lowlat", DT_F32, DT_F32, DT_F32, 32, 16, 8, 8, 130, 40, ANY, 2, 2, 1, 4, 0, 0},
    {"topk1", DT_E4M3, DT_BF16, DT_F32, 8, 0, 1, 1, 128, 33, ANY, 3, 2, 1, 6, 0, 0},
    {"hot-expert", DT_E4M3, DT_BF16, DT_F32, 16, 8, 4, 4, 128, 96, HOT, 3, 1.5, 1, 6, 0, 0},
    {"empty-ranks", DT_BF16, DT_BF16, DT_F32, 16, 0, 4, 2, 64, 24, EMPTY, 3, 2, 1, 16, 0, 0},
    {"overflow", DT_E4M3, DT_BF16, DT_F32, 16, 8, 4, 4, 128, 128, HOT, 1, 0.12, 1, 4, 0, 0},
    {"overflow-aligned", DT_BF16, DT_BF16, DT_F32, 16, 0, 4, 4, 64, 128, RAGGED, 1, 0.1, 8, 4, 0,
     0},
    {"overflow-one-row", DT_F32, DT_F32, DT_F32, 8, 0, 2, 1, 32, 24, RAGGED, 1, 0.001, 1, 4, 0, 0},
    {"long-rows", DT_F32, DT_F32, DT_F32, 8, 0, 2, 1, 17000, 8, ANY, 3, 2, 1, 4, 0, 0},
    {"many-tokens", DT_E4M3, DT_BF16, DT_F32, 16, 8, 4, 4, 64, 4000, ANY, 3, 1.2, 1, 2, 0, 0},
    {"races-normal", DT_BF16, DT_BF16, DT_F32, 16, 8, 2, 1, 32, 24, RAGGED, 1, 0.3, 1, 150, 300, 0},
    {"races-lowlat", DT_BF16, DT_BF16, DT_F32, 16, 8, 2, 1, 32, 24, RAGGED, 2, 2, 1, 300, 300, 0},
    {"quick-normal", DT_BF16, DT_BF16, DT_F32, 8, 0, 2, 1, 8, 8, ANY, 1, 2, 1, 1500, 0, 0},
    {"quick-mixed", DT_E4M3, DT_F32, DT_F32, 8, 8, 2, 1, 8, 8, EMPTY, 3, 0.5, 1, 1500, 0, 0},
    {"races-mixed", DT_E4M3, DT_BF16, DT_F32, 16, 8, 2, 4, 40, 24, EMPTY, 3, 0.5, 1, 200, 300, 0},
    {"sum-fp8", DT_E4M3, DT_BF16, DT_F32, 32, 16, 8, 8, 200, 64, ANY, 1, 2, 1, 8, 0, 1},
    {"sum-bf16", DT_BF16, DT_BF16, DT_BF16, 32, 16, 6, 8, 96, 61, ANY, 3, 2, 4, 8, 0, 1},
    {"sum-f32", DT_F32, DT_F32, DT_F32, 32, 16, 8, 8, 130, 40, ANY, 1, 2, 1, 8, 0, 1},
    {"sum-f32-to-bf16", DT_F32, DT_BF16, DT_F32, 32, 0, 7, 4, 130, 40, ANY, 1, 2, 1, 8, 0, 1},
    {"sum-hot", DT_E4M3, DT_BF16, DT_F32, 32, 16, 8, 8, 128, 96, HOT, 3, 4, 1, 8, 0, 1},
    {"sum-empty", DT_E4M3, DT_BF16, DT_F32, 32, 16, 8, 8, 64, 24, EMPTY, 3, 9, 1, 16, 0, 1},
    {"sum-overflow", DT_E4M3, DT_BF16, DT_F32, 32, 16, 8, 8, 64, 96, HOT, 1, 1.1, 1, 8, 0, 1},
    {"sum-long", DT_BF16, DT_F32, DT_F32, 16, 0, 8, 4, 17000, 8, ANY, 1, 9, 1, 4, 0, 1},
    {"sum-many", DT_E4M3, DT_BF16, DT_F32, 16, 8, 6, 4, 64, 4000, ANY, 3, 2, 1, 4, 0, 1},
    {"sum-quick", DT_BF16, DT_BF16, DT_F32, 16, 8, 6, 8, 8, 16, ANY, 3, 2, 1, 1000, 0, 1},
    {"sum-races", DT_E4M3, DT_BF16, DT_F32, 16, 8, 6, 8, 40, 24, RAGGED, 3, 3, 1, 200, 300, 1},
};
enum { CASES = (int)(sizeof cases / sizeof *cases) };

/* One rank's view of a running case. */
struct unit {
    const struct test_case *c;
    int rank, ranks, slots, local, most;
    int32_t *expert_of_slot; /* [LAYERS, slots] */
    struct ep_group *g;
    uint64_t checked_rows, checked_tokens, hash;
    uint64_t summed, sums; /* COMBINE rows that may come back as sums, and how many of these */
    int rounds;
};
enum { LAYERS = 2 };
static struct unit *running;

#define CHECK(ok, ...)                                                                    \
    do {                                                                                  \
        if (!(ok)) {                                                                      \
            fprintf(stderr, "FAILED rank %d case %s: ", running->rank, running->c->name); \
            fprintf(stderr, __VA_ARGS__);                                                 \
            fprintf(stderr, " [%s:%d] %s\n", __FILE__, __LINE__, error_text());           \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                 \
        }                                                                                 \
    } while (0)

static void on_alarm(int sig)
{
    static char text[2][160];
    static uint8_t marks[1024];
    for (int i = 0; i < 2 && running && running->g; i++) {
        const char *what = ep_awaited(running->g, i, marks);
        size_t at = (size_t)snprintf(text[i], sizeof text[i], "%s of", what);
        for (int r = 0; r < running->ranks && at < sizeof text[i]; r++)
            if (marks[r]) at += (size_t)snprintf(text[i] + at, sizeof text[i] - at, " %d", r);
    }
    fprintf(stderr, "HUNG (signal %d) rank %d case %s: op 0 %s; op 1 %s\n", sig,
            running ? running->rank : -1, running ? running->c->name : "-", text[0], text[1]);
    _exit(99);
}

/* ---- the plain model: everything from the token's global number ---- */

static uint64_t key_of(const struct test_case *c, int iteration)
{
    return (uint64_t)(c - cases) * 1000003u + (uint64_t)iteration * 17u;
}

/* First token of a rank; RAGGED and EMPTY leave some ranks with none. */
static int first_token(const struct unit *u, int iteration, int rank)
{
    int T = u->c->tokens;
    if (u->c->pattern == EMPTY) { /* one rank has a third of the tokens, or nobody any */
        if (iteration % 5 == 4) return 0;
        int who = iteration % u->ranks;
        return rank <= who ? 0 : T / 3;
    }
    if (u->c->pattern == RAGGED) {
        if (rank == 0 || rank == u->ranks) return rank ? T : 0;
        int a = (int)(rng_u64(key_of(u->c, iteration), 7) % (uint64_t)T);
        int b = (int)((int64_t)rank * T / u->ranks);
        return rank % 2 ? b : (a < b ? a + (b - a) / 2 : b);
    }
    return (int)((int64_t)rank * T / u->ranks);
}

static int tokens_of(const struct unit *u, int iteration, int rank)
{
    int n = first_token(u, iteration, rank + 1) - first_token(u, iteration, rank);
    return n > 0 ? n : 0;
}

/* Both operations of a pair use other layers, and an operation's layer changes. */
static int layer_of(int iteration)
{
    return (iteration / 2 + iteration) % LAYERS;
}

/* Neighbours are of different groups; layer 1 backwards. */
static void place_apart(const struct unit *u, int layer, int32_t *expert_of_slot)
{
    int E = u->c->experts, G = u->c->n_group;
    for (int s = 0; s < u->slots; s++) {
        int q = s % E, e = q % G * (E / G) + q / G;
        expert_of_slot[s] = layer == 0 ? e : E - 1 - e;
    }
}

/* The same node by node, each with its share of the groups. False if that cannot be. */
static bool place_whole(const struct unit *u, const struct topology *tp, int layer,
                        int32_t *expert_of_slot)
{
    const struct test_case *c = u->c;
    int nodes = tp->nodes, size = u->ranks / nodes, redundant = u->slots - c->experts;
    int experts = c->experts / nodes, slots = u->slots / nodes;
    if (nodes == 1 || u->ranks % nodes || c->n_group % nodes || redundant % nodes) return false;
    if (redundant > 0 && (size == 1 || experts < u->local)) return false;
    for (int s = 0; s < u->slots; s++) {
        int node = layer == 0 ? s / slots : nodes - 1 - s / slots;
        expert_of_slot[s] = node * experts + s % slots % experts;
    }
    return true;
}

/* What may come back summed of a token of `rank`, when no destination needs a second round. */
static void count_sums(struct unit *u, const struct topology *tp, int layer, const int32_t *ids)
{
    const struct test_case *c = u->c;
    const int32_t *replica;
    for (int group = 0; group < c->n_group; group++) {
        int rows = 0, node = -1;
        for (int k = 0; k < c->topk; k++) {
            if (ids[k] / (c->experts / c->n_group) != group) continue;
            ep_replicas(u->g, layer, ids[k], &replica);
            node = tp->node_of[replica[0] / u->local];
            rows++;
        }
        if (rows < 2 || node == tp->node) continue;
        u->summed += (uint64_t)rows;
        u->sums++;
    }
}

static void route_token(const struct test_case *c, int iteration, int token, int32_t *ids,
                        float *weights)
{
    uint64_t key = key_of(c, iteration) + 0x5151;
    for (int k = 0; k < c->topk; k++) {
        uint64_t r = rng_u64(key, (uint64_t)token * 64 + (uint64_t)k);
        int e = (int)(r % (uint64_t)c->experts);
        if (c->pattern == HOT && k == 0) e = 3;
        for (int j = 0; j < k; j++)
            if (ids[j] == e) e = (e + 1) % c->experts, j = -1;
        ids[k] = e;
        weights[k] = (float)(r >> 40) * 0x1p-24f - 0.25f;
    }
}

static void token_row(const struct test_case *c, int iteration, int token, void *data, float *scale)
{
    uint64_t key = key_of(c, iteration) + 0xabcdef;
    for (int i = 0; i < c->hidden; i++) {
        uint64_t r = rng_u64(key + (uint64_t)token, (uint64_t)(i / 4)) >> (i % 4 * 16);
        float f = (float)(int16_t)(r & 0xffff) / 4096.0f;
        if (c->dispatch == DT_F32) ((float *)data)[i] = f;
        if (c->dispatch == DT_BF16) ((uint16_t *)data)[i] = bf16_from_f32(f);
        if (c->dispatch == DT_E4M3) ((uint8_t *)data)[i] = e4m3_from_f32(f * 8);
    }
    for (int b = 0; c->dispatch == DT_E4M3 && b < fp8_blocks(c->hidden); b++)
        scale[b] = 0.25f + (float)(rng_u64(key, (uint64_t)token * 977 + (uint64_t)b) % 1000);
}

/* The expert: any function of its number and its input row. */
static void expert_row(const struct test_case *c, int expert, const void *data, const float *scale,
                       float *y)
{
    for (int i = 0; i < c->hidden; i++) {
        float x = c->dispatch == DT_F32 ? ((const float *)data)[i]
                  : c->dispatch == DT_BF16
                      ? bf16_to_f32(((const uint16_t *)data)[i])
                      : e4m3_to_f32(((const uint8_t *)data)[i]) * scale[i / FP8_BLOCK];
        y[i] = x * (1.0f + 0.37f * (float)expert) + (float)(i % 7) - (float)expert;
    }
}

static float round_to(enum dtype t, float f)
{
    return t == DT_BF16 ? bf16_to_f32(bf16_from_f32(f)) : f;
}

/* The COMBINE tree of one token, written down from its definition. */
static void expected_output(const struct test_case *c, int iteration, int token, float *out)
{
    int32_t ids[64];
    float weights[64], scale[256];
    float *y = malloc((size_t)(c->topk + 1) * (size_t)c->hidden * sizeof *y);
    void *data = y + (size_t)c->topk * (size_t)c->hidden;
    route_token(c, iteration, token, ids, weights);
    token_row(c, iteration, token, data, scale);
    for (int k = 0; k < c->topk; k++)
        expert_row(c, ids[k], data, scale, y + (size_t)k * (size_t)c->hidden);
    for (int i = 0; i < c->hidden; i++) {
        float total = 0;
        bool first_group = true;
        for (int group = 0; group < c->n_group; group++) {
            float sum = 0;
            bool any = false;
            for (int k = 0; k < c->topk; k++) {
                if (ids[k] / (c->experts / c->n_group) != group) continue;
                float v =
                    weights[k] * round_to(c->combine, y[(size_t)k * (size_t)c->hidden + (size_t)i]);
                sum = any ? sum + v : v;
                any = true;
            }
            if (!any) continue;
            if (c->n_group > 1) sum = round_to(c->combine, sum);
            total = first_group ? sum : total + sum;
            first_group = false;
        }
        out[i] = total;
    }
    free(y);
}

/* ---- one operation on this rank ---- */

struct operation {
    int iteration, m, first;
    enum ep_mode mode;
    struct amat x;
    int32_t *ids;
    float *weights;
};

static void jitter(const struct unit *u, int iteration, int where)
{
    if (u->c->jitter_us == 0) return;
    uint64_t r = rng_u64((uint64_t)(u->rank + 1) * 7919u, (uint64_t)(iteration * 8 + where));
    if (r % 4 == 0) usleep((useconds_t)(r / 4 % (uint64_t)u->c->jitter_us));
}

static void begin(struct unit *u, struct operation *o, int op, int iteration,
                  const struct topology *tp)
{
    const struct test_case *c = u->c;
    size_t row = (size_t)c->hidden * dtype_bytes(c->dispatch);
    size_t blocks = (size_t)fp8_blocks(c->hidden), K = (size_t)c->topk;
    o->iteration = iteration;
    o->m = tokens_of(u, iteration, u->rank);
    o->first = first_token(u, iteration, u->rank);
    o->mode = c->modes == 1 || (c->modes == 3 && iteration % 3 == 0) ? EP_NORMAL : EP_LOW_LATENCY;
    char *data = malloc((size_t)o->m * row + 1);
    float *scale = malloc((size_t)o->m * blocks * sizeof *scale + 1);
    o->ids = malloc((size_t)o->m * K * sizeof *o->ids + 1);
    o->weights = malloc((size_t)o->m * K * sizeof *o->weights + 1);
    for (int t = 0; t < o->m; t++) {
        token_row(c, iteration, o->first + t, data + (size_t)t * row, scale + (size_t)t * blocks);
        route_token(c, iteration, o->first + t, o->ids + (size_t)t * K, o->weights + (size_t)t * K);
        if (o->mode == EP_NORMAL) count_sums(u, tp, layer_of(iteration), o->ids + (size_t)t * K);
    }
    o->x = (struct amat){
        c->dispatch, c->hidden, data, c->hidden, c->dispatch == DT_E4M3 ? scale : NULL,
        (int)blocks};
    if (c->dispatch != DT_E4M3) free(scale);
    jitter(u, iteration, 1);
    CHECK(ep_dispatch_begin(u->g, op, layer_of(iteration), o->mode, o->m, &o->x, o->ids,
                            o->weights) == OK,
          "begin");
    /* ids and weights were copied; nobody may need ours. */
    memset(o->ids, 0x7f, (size_t)o->m * K * sizeof *o->ids);
    memset(o->weights, 0x7f, (size_t)o->m * K * sizeof *o->weights);
}

/* All (source, token) of one of my slots in the promised order; returns how many. */
static int expected_rows(const struct unit *u, int iteration, int slot, int *tokens)
{
    const struct test_case *c = u->c;
    int n = 0;
    for (int s = 0; s < u->ranks; s++)
        for (int t = 0, m = tokens_of(u, iteration, s); t < m; t++) {
            int32_t ids[64];
            float weights[64];
            int token = first_token(u, iteration, s) + t;
            route_token(c, iteration, token, ids, weights);
            for (int k = 0; k < c->topk; k++) {
                const int32_t *replica;
                int count = ep_replicas(u->g, layer_of(iteration), ids[k], &replica);
                if (replica[(s + t) % count] == slot) tokens[n++] = token;
            }
        }
    return n;
}

static void check_row(struct unit *u, int iteration, const struct ep_recv *r, int at, int token)
{
    const struct test_case *c = u->c;
    size_t size = dtype_bytes(c->dispatch);
    float scale[256];
    void *data = malloc((size_t)c->hidden * size);
    token_row(c, iteration, token, data, scale);
    const char *got = (const char *)r->x.data + (size_t)at * (size_t)r->x.ld * size;
    CHECK(memcmp(got, data, (size_t)c->hidden * size) == 0, "row %d is not token %d", at, token);
    if (c->dispatch == DT_E4M3)
        CHECK(memcmp(r->x.scale + (size_t)at * (size_t)r->x.lds, scale,
                     (size_t)fp8_blocks(c->hidden) * sizeof *scale) == 0,
              "scales of row %d", at);
    free(data);
    u->checked_rows++;
}

/* Expert outputs of a round, checking each input row on the way. done[slot]: rows so far. */
static void *experts(struct unit *u, int iteration, const struct ep_recv *r, int **tokens,
                     int *done)
{
    const struct test_case *c = u->c;
    size_t H = (size_t)c->hidden, size = dtype_bytes(c->y);
    char *y = malloc((size_t)r->total * H * size + 1);
    float *row = malloc(H * sizeof *row);
    const int32_t *experts_here =
        u->expert_of_slot + layer_of(iteration) * u->slots + u->rank * u->local;
    memset(y, 0xff, (size_t)r->total * H * size);
    for (int l = 0; l < r->groups; l++) {
        CHECK(r->begin[l] % u->c->align == 0 || r->rows[l] == 0, "begin %d", r->begin[l]);
        CHECK(r->rows[l] == 0 || r->begin[l] + r->rows[l] <= r->total, "total %d", r->total);
        for (int i = 0; i < r->rows[l]; i++) {
            int at = r->begin[l] + i;
            size_t in = (size_t)at * (size_t)r->x.ld * dtype_bytes(c->dispatch);
            check_row(u, iteration, r, at, tokens[l][done[l]++]);
            expert_row(c, experts_here[l], (const char *)r->x.data + in,
                       r->x.scale ? r->x.scale + (size_t)at * (size_t)r->x.lds : NULL, row);
            for (size_t j = 0; j < H; j++) {
                if (c->y == DT_F32) memcpy(y + ((size_t)at * H + j) * 4, &row[j], 4);
                uint16_t h = bf16_from_f32(row[j]);
                if (c->y == DT_BF16) memcpy(y + ((size_t)at * H + j) * 2, &h, 2);
            }
        }
    }
    free(row);
    return y;
}

/* Receives all rounds, computes and sends back. */
static void middle(struct unit *u, struct operation *o, int op)
{
    struct ep_recv r;
    int *tokens[u->local], expected[u->local], done[u->local];
    for (int l = 0; l < u->local; l++) {
        tokens[l] = malloc((size_t)u->c->tokens * (size_t)u->c->topk * sizeof(int) + 1);
        expected[l] = expected_rows(u, o->iteration, u->rank * u->local + l, tokens[l]);
        done[l] = 0;
    }
    jitter(u, o->iteration, 2);
    CHECK(ep_dispatch_finish(u->g, op, &r) == OK, "finish");
    for (;;) {
        for (int l = 0; l < u->local; l++)
            CHECK(done[l] + r.rows[l] <= expected[l], "slot %d has %d rows, expected %d", l,
                  done[l] + r.rows[l], expected[l]);
        void *y = experts(u, o->iteration, &r, tokens, done);
        jitter(u, o->iteration, 3);
        CHECK(ep_combine_begin(u->g, op, u->c->y, y, u->c->hidden) == OK, "combine begin");
        free(y);
        if (!r.more) break;
        u->rounds++;
        CHECK(ep_dispatch_next(u->g, op, &r) == OK, "next");
    }
    for (int l = 0; l < u->local; l++) {
        CHECK(done[l] == expected[l], "slot %d got %d of %d rows", l, done[l], expected[l]);
        free(tokens[l]);
    }
}

static void end(struct unit *u, struct operation *o, int op)
{
    size_t H = (size_t)u->c->hidden;
    int ldo = u->c->hidden + 3;
    float *out = malloc(((size_t)o->m * (size_t)ldo + 1) * sizeof *out);
    float *want = malloc(H * sizeof *want);
    jitter(u, o->iteration, 4);
    CHECK(ep_combine_finish(u->g, op, out, ldo) == OK, "combine finish");
    for (int t = 0; t < o->m; t++) {
        expected_output(u->c, o->iteration, o->first + t, want);
        const float *got = out + (size_t)t * (size_t)ldo;
        for (size_t i = 0; i < H; i++)
            CHECK(num_bits(got[i]) == num_bits(want[i]), "token %d channel %zu: %a, expected %a",
                  o->first + t, i, (double)got[i], (double)want[i]);
        u->hash += hash64(got, H * sizeof *got, (uint64_t)(o->iteration * 100003 + o->first + t));
        u->checked_tokens++;
    }
    free(out);
    free(want);
    free((void *)(uintptr_t)o->x.data);
    free((void *)(uintptr_t)o->x.scale);
    free(o->ids);
    free(o->weights);
}

/* Two operations open, in several orders, back to back. */
static void iterate(struct unit *u, const struct topology *tp)
{
    struct operation o[2];
    int n = u->c->iterations;
    for (int it = 0; it < n; it += 2) {
        begin(u, &o[0], 0, it, tp);
        if (it % 4 == 0) begin(u, &o[1], 1, it + 1, tp);
        middle(u, &o[0], 0);
        if (it % 4 != 0) begin(u, &o[1], 1, it + 1, tp);
        if (it % 8 < 4) end(u, &o[0], 0);
        middle(u, &o[1], 1);
        if (it % 8 >= 4) end(u, &o[0], 0);
        end(u, &o[1], 1);
    }
}

/* Rows that gateways summed must be exactly those that the rule names. */
static void check_sums(struct unit *u, const struct ep_stats *st, bool whole)
{
    uint64_t mine[4] = {u->summed, u->sums, st->rows_reduced, st->rows_partial}, all[4];
    int rounds = 0;
    MPI_Allreduce(mine, all, 4, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(&u->rounds, &rounds, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    CHECK(whole || all[2] + all[3] == 0, "%llu rows were summed", (unsigned long long)all[2]);
    if (!whole) return;
    CHECK(rounds > 0 || (all[0] == all[2] && all[1] == all[3]),
          "%llu rows became %llu sums, expected %llu and %llu", (unsigned long long)all[2],
          (unsigned long long)all[3], (unsigned long long)all[0], (unsigned long long)all[1]);
    CHECK(all[2] <= all[0] && all[3] <= all[1], "more sums than can be");
    if (u->rank == 0)
        printf("      %llu rows came back as %llu sums\n", (unsigned long long)all[2],
               (unsigned long long)all[3]);
}

/* Returns the bytes that all ranks put to other nodes. whole: let groups be whole on nodes if
 * the case asks for it; set to whether they were. */
static uint64_t run_case(const struct test_case *c, int ranks_per_node, bool *whole)
{
    struct unit u = {.c = c};
    struct transport *t = NULL;
    struct kernels kernels = {0};
    struct lane lane __attribute__((cleanup(lane_free)));
    running = &u;
    MPI_Comm_rank(MPI_COMM_WORLD, &u.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &u.ranks);
    u.slots = c->experts + (u.ranks > 1 ? c->redundant : 0);
    u.local = u.slots / u.ranks;
    u.expert_of_slot = malloc(LAYERS * (size_t)u.slots * sizeof *u.expert_of_slot);
    CHECK(gemm_kernels_fill(&kernels, ISA_PORTABLE) == OK, "kernels");
    CHECK(moe_kernels_fill(&kernels, ISA_PORTABLE) == OK, "kernels");
    lane_init(&lane, device_cpu(), u.ranks == 1 ? 2 : 1);
    CHECK(transport_create(MPI_COMM_WORLD, ranks_per_node, &t) == OK, "transport");
    const struct topology *tp = transport_topology(t);
    *whole = *whole && c->whole;
    for (int l = 0; l < LAYERS; l++) {
        int32_t *experts = u.expert_of_slot + l * u.slots;
        place_apart(&u, l, experts);
        if (*whole) *whole = place_whole(&u, tp, l, experts);
    }
    struct waiter waiter = {.transport = t};
    struct ep_params p = {.experts = c->experts,
                          .slots = u.slots,
                          .topk = c->topk,
                          .hidden = c->hidden,
                          .n_group = c->n_group,
                          .max_tokens = c->tokens,
                          .chunk_tokens = c->tokens,
                          .recv_rows_factor = c->factor,
                          .row_align = c->align,
                          .dispatch_type = c->dispatch,
                          .combine_type = c->combine};
    if (c->pattern == ANY || c->pattern == HOT) p.chunk_tokens = c->tokens / u.ranks + 1;
    if (c->pattern == ANY || c->pattern == HOT) p.max_tokens = p.chunk_tokens;
    struct ep_placement placement = {u.slots, LAYERS, u.expert_of_slot};
    CHECK(ep_create(&p, &placement, &waiter, &kernels, &lane, &u.g) == OK, "ep_create");
    double start = MPI_Wtime();
    iterate(&u, tp);
    double s = MPI_Wtime() - start;
    MPI_Request all_done; /* others may still need this gateway, which may add to its counts */
    MPI_Ibarrier(MPI_COMM_WORLD, &all_done);
    for (int done = 0; !done; usleep(100)) {
        transport_poll(t);
        MPI_Test(&all_done, &done, MPI_STATUS_IGNORE);
    }
    struct ep_stats stats = ep_statistics(u.g);
    uint64_t remotes = 0;
    ep_destroy(u.g);
    u.g = NULL;
    if (c->whole) check_sums(&u, &stats, *whole);
    uint64_t sums[3] = {u.checked_rows, u.checked_tokens, u.hash}, all[3];
    int rounds = 0;
    MPI_Reduce(sums, all, 3, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Allreduce(&stats.bytes_remote, &remotes, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    MPI_Reduce(&u.rounds, &rounds, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    if (u.rank == 0)
        printf("ok  %-17s %d ranks, %d a node, %-7s %4d ops, %7llu rows, %6llu tokens, "
               "%4d extra rounds, %6.2f s  hash %016llx\n",
               c->name, u.ranks, ranks_per_node, transport_name(t), c->iterations,
               (unsigned long long)all[0], (unsigned long long)all[1], rounds, s,
               (unsigned long long)all[2]);
    bool overflow = strstr(c->name, "overflow") != NULL;
    if (u.rank == 0) CHECK(!overflow || u.ranks == 1 || rounds > 0, "no overflow was provoked");
    fflush(stdout);
    transport_destroy(t);
    free(u.expert_of_slot);
    running = NULL;
    return remotes;
}

/* With whole groups, then the same tokens with groups apart: the same bits, more traffic. */
static void run_both(const struct test_case *c, int ranks_per_node)
{
    bool whole = true, apart = false;
    alarm(180);
    uint64_t less = run_case(c, ranks_per_node, &whole);
    if (!whole) return;
    alarm(180);
    uint64_t more = run_case(c, ranks_per_node, &apart);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0)
        printf("      to other nodes: %.3f MB with whole groups, %.3f MB apart\n",
               (double)less * 1e-6, (double)more * 1e-6);
    bool overflow = strstr(c->name, "overflow") != NULL;  /* rows, where a rank needs rounds */
    if (less < more || c->modes != 1 || overflow) return; /* low latency: always rows */
    fprintf(stderr, "FAILED case %s: whole groups save nothing\n", c->name);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

int main(int argc, char **argv)
{
    int provided, ranks, found = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    signal(SIGALRM, on_alarm);
    static const int groupings[] = {0, 1, 2, 3, 4};
    for (int i = 0; i < CASES; i++) {
        if (argc > 1 && strcmp(argv[1], "--list") == 0) puts(cases[i].name), found = 1;
        if (argc > 1 && strcmp(argv[1], cases[i].name) != 0) continue;
        for (int j = 0; j < (int)(sizeof groupings / sizeof *groupings); j++) {
            if (groupings[j] >= ranks && groupings[j] > 0) continue;
            if (groupings[j] == 3 && ranks != 8) continue; /* nodes of 3, 3 and 2 */
            run_both(&cases[i], groupings[j]);
            found = 1;
        }
    }
    if (!found) fprintf(stderr, "test_ep: no such case, try --list\n");
    MPI_Finalize();
    return found ? 0 : 2;
}
