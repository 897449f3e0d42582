/* provenance.c - see provenance.h. */
#include "cmd/provenance.h"

#include "account/results.h"

#include <jansson.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

void provenance_libraries(char *text, size_t bytes)
{
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING], built[16], hdf5[16];
    int len = 0;
    MPI_Get_library_version(mpi, &len);
    mpi[strcspn(mpi, "\n,")] = '\0';
    results_hdf5_versions(built, hdf5);
    snprintf(text, bytes, "%.80s; HDF5 %s (built with %s); libyaml %s; jansson %s; compiler %s",
             mpi, hdf5, built, yaml_get_version_string(), jansson_version_str(), __VERSION__);
}

char *provenance_argv(int argc, char **argv)
{
    size_t n = sizeof "moebatch";
    for (int i = 0; i < argc; i++) n += strlen(argv[i]) + 1;
    char *s = malloc(n);
    if (!s) return NULL;
    strcpy(s, "moebatch");
    for (int i = 0; i < argc; i++) {
        strcat(s, " ");
        strcat(s, argv[i]);
    }
    return s;
}

typedef char host_name[MPI_MAX_PROCESSOR_NAME];

/* Like hosts in a row as NAME*COUNT. */
static char *join_hosts(const host_name *name, int ranks)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return NULL;
    for (int i = 0, n = 0; i < ranks; i += n) {
        for (n = 1; i + n < ranks && !strcmp(name[i], name[i + n]);) n++;
        fprintf(f, "%s%s*%d", i ? " " : "", name[i], n);
    }
    if (fclose(f) == 0) return text;
    free(text);
    return NULL;
}

char *provenance_hosts(void)
{
    int rank = 0, ranks = 1, len = 0;
    host_name mine = "", *all = NULL;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Get_processor_name(mine, &len);
    if (rank == 0) all = calloc((size_t)ranks, sizeof *all);
    int room = rank != 0 || all;
    MPI_Bcast(&room, 1, MPI_INT, 0, MPI_COMM_WORLD);
    if (!room) return NULL;
    MPI_Gather(mine, sizeof mine, MPI_CHAR, all, sizeof mine, MPI_CHAR, 0, MPI_COMM_WORLD);
    char *text = rank == 0 ? join_hosts((const host_name *)all, ranks) : NULL;
    free(all);
    return text;
}
