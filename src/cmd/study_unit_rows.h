/* study_unit_rows.h - the figures that study --unit prints, kept for the results file. Plain arrays
 * of fixed size; rows beyond them are refused by the caller's own limits, never dropped silently.
 */
#ifndef CMD_STUDY_UNIT_ROWS_H
#define CMD_STUDY_UNIT_ROWS_H

#include "account/study_results.h"
#include "cluster/unit_model.h"

enum { UNIT_BATCHES = 96, UNIT_STAGES = 4 * STAGE_COUNT, UNIT_MEMORIES = 4 };

struct unit_rows {
    const char *role, *level; /* of the unit at hand */
    int n_batches, n_stages, n_memories;
    struct study_batch_row batch[UNIT_BATCHES];
    struct study_stage_row stage[UNIT_STAGES];
    struct study_memory_row memory[UNIT_MEMORIES];
};

/* One line of the table; tpot_s NaN: prefill. */
void unit_rows_batch(struct unit_rows *r, int load, const struct unit_step *s, double tpot_s,
                     double per_gpu, int gpus_per_node, bool fits);
void unit_rows_stages(struct unit_rows *r, const struct unit_step *s);
void unit_rows_memory(struct unit_rows *r, const struct unit_speed *u);

/* The three tables into f. */
enum status unit_rows_write(const struct unit_rows *r, struct study_file *f);

#endif
