/* links: core schedule */
/* Whom the watchdog names, from made-up reports: a silent rank, a slow one, a chain, a cycle, a lost
 * host, a start that one rank has not come through.
 */
#include "engine/verdict.c" // NOLINT(bugprone-suspicious-include)

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N = 6, SET = 1, BYTES = (sizeof(struct watch_report) + SET + 7) / 8 * 8 };

struct scene {
    _Alignas(8) char reports[N * BYTES];
    struct watch_name names[N];
    struct verdict v;
};

static struct watch_report *rank_in(struct scene *s, int rank)
{
    return (void *)(s->reports + (size_t)rank * BYTES);
}

/* Everybody serves and computes ATTN of layer 1 in decode step 7, on two hosts. */
static void scene_init(struct scene *s)
{
    memset(s, 0, sizeof *s);
    for (int i = 0; i < N; i++) {
        struct watch_report *r = rank_in(s, i);
        r->rank = i;
        r->known = KNOWN_ALIVE;
        r->seen = 1;
        r->phase = WATCH_SERVE;
        r->kind = 1;
        r->step = 7;
        r->layer = 1;
        r->stage = STAGE_ATTN_0;
        r->process = 'S';
        snprintf(s->names[i].host, sizeof s->names[i].host, "host%d", i / 3);
        snprintf(s->names[i].unit, sizeof s->names[i].unit, "decode0");
    }
}

static void waits(struct scene *s, int rank, enum watch_wait wait, uint8_t whom)
{
    rank_in(s, rank)->wait = (int32_t)wait;
    rank_in(s, rank)->awaited[0] = whom;
    snprintf(rank_in(s, rank)->what, sizeof rank_in(s, rank)->what, "dispatch rows");
    rank_in(s, rank)->stage = STAGE_DISPATCH;
}

static void judge(struct scene *s, int rank, int waiting, const char *text)
{
    verdict_find(s->reports, BYTES, s->names, N, 3, &s->v);
    if (s->v.rank != rank || s->v.waiting != waiting || !strstr(s->v.text, text))
        print_error("# %s\n", s->v.text);
    assert_int_equal(s->v.rank, rank);
    assert_int_equal(s->v.waiting, waiting);
    assert_non_null(strstr(s->v.text, text));
}

static void silent_rank(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    for (int i = 0; i < N; i++) waits(&s, i, WATCH_ROWS, 1u << 4);
    rank_in(&s, 4)->known = KNOWN_SILENT;
    rank_in(&s, 4)->process = 'T';
    judge(&s, 4, 5,
          "5 ranks wait for rank 4 on host1 (decode0, decode step 7, layer 1, DISPATCH), "
          "its process is stopped");
    assert_non_null(strstr(s.v.text, "rank 0 on host0 (decode0, decode step 7, layer 1, DISPATCH) "
                                     "for its dispatch rows"));
    assert_non_null(strstr(s.v.text, "and 1 more"));
    assert_false(s.v.answers);
}

/* 0 and 1 wait for 2, which waits for 5: it computes and answers, so it is only slow. */
static void slow_rank_behind_another(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    waits(&s, 0, WATCH_WORD, 1u << 2);
    waits(&s, 1, WATCH_WORD, 1u << 2);
    waits(&s, 2, WATCH_REPORTS, 1u << 5);
    judge(&s, 5, 3, "it computes, reads or writes");
    assert_true(s.v.answers);
}

/* The computing rank is innocent when a rank that does not answer holds the others up. */
static void silent_before_busy(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    waits(&s, 0, WATCH_ROWS, (1u << 1) | (1u << 3));
    rank_in(&s, 3)->known = KNOWN_SILENT;
    rank_in(&s, 3)->seen = 0;
    judge(&s, 3, 1, "rank 3 on host1 (decode0, step and op unknown), it does not answer");
}

static void lost_host(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    for (int i = 0; i < 3; i++) waits(&s, i, WATCH_ROWS, 0x38);
    for (int i = 3; i < N; i++) rank_in(&s, i)->known = KNOWN_SILENT;
    judge(&s, 3, 3, "The same holds for rank 4 on host1, 5 on host1");
}

/* Seen from host 0 alone: nothing is known of host 1, which its ranks wait for. */
static void other_host(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    for (int i = 0; i < 3; i++) waits(&s, i, WATCH_ROWS, 1u << 4);
    for (int i = 3; i < N; i++) rank_in(&s, i)->known = KNOWN_NOT;
    judge(&s, 4, 3, "nothing is known of it here");
}

static void cycle(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    for (int i = 0; i < N; i++) waits(&s, i, WATCH_ROWS, (uint8_t)(1u << (i + 1) % N));
    judge(&s, 0, 5, "it waits itself");
}

static void idle(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    for (int i = 0; i < N; i++) waits(&s, i, i ? WATCH_WORD : WATCH_WORK, i ? 1 : 0);
    judge(&s, -1, 0, "every rank is idle");
}

static void start(void **state)
{
    (void)state;
    struct scene s;
    scene_init(&s);
    for (int i = 0; i < N; i++) {
        rank_in(&s, i)->phase = WATCH_WEIGHTS;
        rank_in(&s, i)->wait = i == 2 ? WATCH_NO : WATCH_MEET;
        rank_in(&s, i)->meets = i == 2 ? 8 : 9;
    }
    judge(&s, 2, 5, "rank 2 on host0 (decode0, start: weights)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(silent_rank),
        cmocka_unit_test(slow_rank_behind_another),
        cmocka_unit_test(silent_before_busy),
        cmocka_unit_test(lost_host),
        cmocka_unit_test(other_host),
        cmocka_unit_test(cycle),
        cmocka_unit_test(idle),
        cmocka_unit_test(start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
