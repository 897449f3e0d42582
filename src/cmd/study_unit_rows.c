/* study_unit_rows.c - see study_unit_rows.h. */
#include "cmd/study_unit_rows.h"

#include <stdio.h>

#define NAME(to, from) snprintf(to, sizeof to, "%s", from)

void unit_rows_batch(struct unit_rows *r, int load, const struct unit_step *s, double tpot_s,
                     double per_gpu, int gpus_per_node, bool fits)
{
    if (r->n_batches == UNIT_BATCHES) return; /* at most 4 units of 16 lines */
    struct study_batch_row *row = &r->batch[r->n_batches++];
    *row = (struct study_batch_row){
        .load = load,
        .fits = fits,
        .step_s = s->step_s,
        .exposed_s = s->exposed_s,
        .tpot_s = tpot_s,
        .tokens_per_s_request = 1 / tpot_s,
        .tokens_per_s_gpu = per_gpu,
        .tokens_per_s_node = per_gpu * gpus_per_node,
    };
    NAME(row->role, r->role);
    NAME(row->level, r->level);
}

void unit_rows_stages(struct unit_rows *r, const struct unit_step *s)
{
    for (int i = 0; i < STAGE_COUNT && r->n_stages < UNIT_STAGES; i++) {
        const struct stage_time *t = &s->stage[i];
        if (t->us <= 0) continue;
        struct study_stage_row *row = &r->stage[r->n_stages++];
        *row = (struct study_stage_row){
            .us = t->us,
            .launch_us = t->part[BOUND_LAUNCH],
            .memory_us = t->part[BOUND_MEMORY],
            .compute_us = t->part[BOUND_COMPUTE],
            .network_us = t->part[BOUND_NETWORK],
            .latency_us = t->part[BOUND_LATENCY],
            .kernels_us = t->part[BOUND_KERNELS],
        };
        NAME(row->role, r->role);
        NAME(row->level, r->level);
        NAME(row->stage, stage_name((enum stage)i));
        NAME(row->bound, stage_bound_name(t->bound));
    }
}

void unit_rows_memory(struct unit_rows *r, const struct unit_speed *u)
{
    struct unit_memory m;
    if (r->n_memories == UNIT_MEMORIES) return;
    unit_memory(u, &m);
    struct study_memory_row *row = &r->memory[r->n_memories++];
    *row = (struct study_memory_row){
        .capacity = m.capacity,
        .replicated = m.replicated,
        .experts = m.routed,
        .absorbed = m.absorbed,
        .buffers = m.comm,
        .workspace = m.activation,
        .reserve = m.reserve,
        .kv_cache = m.kv,
        .kv_bytes_per_token = m.kv_per_token,
        .kv_tokens = unit_kv_tokens(u),
    };
    NAME(row->role, r->role);
    NAME(row->level, r->level);
}

enum status unit_rows_write(const struct unit_rows *r, struct study_file *f)
{
    TRY(study_file_batches(f, r->batch, (size_t)r->n_batches));
    TRY(study_file_stages(f, r->stage, (size_t)r->n_stages));
    return study_file_memory(f, r->memory, (size_t)r->n_memories);
}
