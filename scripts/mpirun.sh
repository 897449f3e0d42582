#!/bin/bash
# mpirun for many ranks on few cores: oversubscribed, unbound, ranks yield while they wait. Options
# and program as for mpirun: scripts/mpirun.sh -np 176 build/moebatch run JOB.yaml
set -eu
if [ "$(id -u)" = 0 ]; then # Open MPI refuses root unless told
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Warnings about missing fabrics and CPU memory tell nothing about this job.
export OMPI_MCA_btl_base_warn_component_unused=0 OMPI_MCA_mpi_warn_on_fork=0
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
# A host that is gone is noticed after 6 s, not after minutes, and mpirun can end the others.
export OMPI_MCA_oob_tcp_keepalive_time=3 OMPI_MCA_oob_tcp_keepalive_intvl=1
export OMPI_MCA_oob_tcp_keepalive_probes=3
exec mpirun --oversubscribe --bind-to none "$@"
