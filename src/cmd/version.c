/* version.c - what this program is made of: revision, compiler, libraries as compiled and as
 * loaded now, instruction sets of this host. Works before MPI_Init. */
#include "cmd/cmd.h"
#include "core/cpu.h"

#include <hdf5.h>
#include <hwloc.h>
#include <jansson.h>
#include <mpi.h>
#include <string.h>
#include <yaml.h>

#ifndef MOEBATCH_GITREV
#define MOEBATCH_GITREV "unknown"
#endif

#define STRING(x) #x
#define TEXT(x) STRING(x)

const char *cmd_gitrev(void)
{
    return MOEBATCH_GITREV;
}

static void print_library(FILE *out, const char *name, const char *compiled, const char *loaded)
{
    fprintf(out, "%-10s compiled %-12s loaded %s\n", name, compiled, loaded);
}

static void print_mpi(FILE *out)
{
    char loaded[MPI_MAX_LIBRARY_VERSION_STRING];
    int len;
    MPI_Get_library_version(loaded, &len);
    loaded[strcspn(loaded, ",\n")] = '\0'; /* Open MPI adds its build host and more */
#ifdef OMPI_MAJOR_VERSION
    const char *compiled =
        TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(OMPI_RELEASE_VERSION);
#else
    const char *compiled = "MPI " TEXT(MPI_VERSION) "." TEXT(MPI_SUBVERSION);
#endif
    print_library(out, "mpi", compiled, loaded);
}

static void print_libraries(FILE *out)
{
    char text[64];
    unsigned major = 0, minor = 0, release = 0;
    H5get_libversion(&major, &minor, &release);
    snprintf(text, sizeof text, "%u.%u.%u", major, minor, release);
    print_library(out, "hdf5",
                  TEXT(H5_VERS_MAJOR) "." TEXT(H5_VERS_MINOR) "." TEXT(H5_VERS_RELEASE), text);
    print_library(out, "libyaml", "-", yaml_get_version_string()); /* its header has no version */
    print_library(out, "jansson", JANSSON_VERSION, jansson_version_str());
    unsigned api = hwloc_get_api_version();
    char compiled[64];
    snprintf(compiled, sizeof compiled, "%u.%u.%u", HWLOC_API_VERSION >> 16,
             HWLOC_API_VERSION >> 8 & 255u, HWLOC_API_VERSION & 255u);
    snprintf(text, sizeof text, "%u.%u.%u", api >> 16, api >> 8 & 255, api & 255);
    print_library(out, "hwloc api", compiled, text);
}

void cmd_version(FILE *out)
{
    fprintf(out, "moebatch %s\n", cmd_gitrev());
#ifdef __clang__
    fprintf(out, "compiler   clang %s\n", __clang_version__);
#else
    fprintf(out, "compiler   gcc %s\n", __VERSION__);
#endif
    print_mpi(out);
    print_libraries(out);
    for (int i = 0; i < ISA_COUNT; i++) {
        const char *why = NULL;
        bool has = isa_supported((enum isa)i, &why);
        fprintf(out, "isa        %-12s %s%s\n", isa_name((enum isa)i), has ? "yes" : "no, missing ",
                has   ? ""
                : why ? why
                      : "support");
    }
}
