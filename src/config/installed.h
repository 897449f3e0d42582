/* installed.h - finds the files that come with the program: price tables, hardware files. */
#ifndef CONFIG_INSTALLED_H
#define CONFIG_INSTALLED_H

#include <stdbool.h>
#include <stddef.h>

/* A relative path that is not here may be one that came with the program: beside the build folder,
 * or under share/moebatch where it was installed. Rewrites path[bytes] then; false, and path as it
 * was, when there is no such file either. */
bool installed_find(char *path, size_t bytes);

#endif
