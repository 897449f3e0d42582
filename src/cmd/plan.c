/* plan.c - `moebatch plan JOB.yaml`: a job looked at before it runs, on one core.
 *
 * 1. command line   2. sizes and memory, with the code of run's start   3. the tables
 * 4. what does not fit is refused as run would   5. time and cost
 */
#include "cmd/cmd.h"
#include "cmd/host_args.h"
#include "config/job_args.h"
#include "plan/plan_time.h"

#include <stdlib.h>

static void help(void)
{
    puts("moebatch plan JOB.yaml [options]   (no mpirun)\n"
         "\n"
         "Shows what `moebatch run` would do with the job before it does: which rank is what, "
         "memory\n"
         "of a rank by component and of a host, requests that the KV pages hold, and the time and\n"
         "cost of the token file. Ends with run's exit code where run would refuse.\n");
    host_args_help(HOST_ARGS_PLAN, stdout);
    job_args_help(stdout);
    puts("");
    cmd_help_exit_codes(stdout);
}

static enum status plan(const struct job_args *args, const struct host_args *hosts)
{
    struct plan_setup setup = {
        .job = &args->job,
        .ranks = (int)hosts->ranks,
        .ranks_per_host = (int)hosts->tasks,
        .cores_per_host = (int)hosts->cores,
        .host_bytes = hosts->memory_gib * (1 << 30),
    };
    struct plan p;
    struct plan_time t;
    TRY(plan_make(&setup, &p));
    enum status st = OK;
    if (args->dump_config) {
        job_dump(&p.job, false, stdout);
    } else {
        plan_print(&p, stdout);
        st = plan_check(&p);
        if (st == OK) st = plan_time_predict(&p, hosts->hardware, &t);
        if (st == OK) plan_time_print(&p, &t, stdout);
    }
    plan_free(&p);
    return st;
}

enum status cmd_plan(int argc, char **argv)
{
    if (cmd_wants_help(argc, argv)) {
        help();
        return OK;
    }
    struct host_args hosts;
    struct job_args *args = calloc(1, sizeof *args);
    enum status st = args ? OK : error_set(ERR_RESOURCE, "no memory for the job");
    if (st == OK) st = host_args_parse(HOST_ARGS_PLAN, argc, argv, &hosts);
    if (st == OK) st = job_args_parse(hosts.n_rest, hosts.rest, args);
    if (st == OK) st = plan(args, &hosts);
    if (args) host_args_free(&hosts);
    free(args);
    return st;
}
