/* installed.c - see installed.h. */
#include "config/installed.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool installed_find(char *path, size_t bytes)
{
    static const char *const places[] = {"/../", "/../share/moebatch/"};
    char program[PATH_MAX], found[2 * PATH_MAX + 32];
    if (access(path, R_OK) == 0) return true;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (path[0] == '/' || n <= 0) return false;
    program[n] = '\0';
    *strrchr(program, '/') = '\0';
    for (int i = 0; i < 2; i++) {
        int len = snprintf(found, sizeof found, "%s%s%s", program, places[i], path);
        if (len < 0 || (size_t)len >= bytes || access(found, R_OK) != 0) continue;
        memcpy(path, found, (size_t)len + 1);
        return true;
    }
    return false;
}
