/* checkpoint.c - opening a directory: the index, the shards, one hash table over all names.
 * Checking against the configuration is checkpoint_validate.c's, reading values
 * checkpoint_read.c's.
 */
#include "checkpoint/checkpoint.h"

#include "checkpoint/checkpoint_internal.h"
#include "checkpoint/json_field.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* 90 k tensors make an index of about 9 MB. */
enum { INDEX_BYTES_MAX = 512 << 20 };

static char *path_join(const char *dir, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static enum status no_memory(const char *dir)
{
    return error_set(ERR_RESOURCE, "%s: no memory for the list of tensors", dir);
}

/* A shard lies in the directory itself. Checked by spelling, not by following links: download
 * caches link every file to another directory. */
static bool shard_name_ok(const char *name)
{
    return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct files of weight_map, ascending; names are borrowed from it. */
static enum status list_shards(const char *index, json_t *map, const char ***files, int *count)
{
    size_t n = 0, entries = json_object_size(map);
    const char *tensor;
    json_t *file;
    const char **list = calloc(entries + 1, sizeof *list);
    if (!list) return no_memory(index);
    json_object_foreach(map, tensor, file)
    {
        const char *name = json_string_value(file);
        if (!name || !shard_name_ok(name)) {
            free(list);
            return error_set(ERR_INPUT,
                             "%s: weight_map.%s is \"%s\", expected the name of a file in this "
                             "directory",
                             index, tensor, name ? name : "not a string");
        }
        list[n++] = name;
    }
    if (n) qsort(list, n, sizeof *list, by_text);
    size_t unique = 0;
    for (size_t i = 0; i < n; i++)
        if (unique == 0 || strcmp(list[unique - 1], list[i]) != 0) list[unique++] = list[i];
    *files = list;
    *count = (int)unique;
    return OK;
}

static enum status open_files(struct checkpoint *ck, const char *const *names, int count)
{
    ck->file = calloc((size_t)count + 1, sizeof *ck->file);
    if (!ck->file) return no_memory(ck->dir);
    for (int i = 0; i < count; i++) {
        char *path = path_join(ck->dir, names[i]);
        if (!path) return no_memory(ck->dir);
        enum status st = safetensors_open(path, &ck->file[i]);
        free(path);
        if (st != OK) return st;
        ck->files++;
        ck->tensors += ck->file[i].count;
    }
    return OK;
}

/* All views in one array, file after file. */
static enum status gather_tensors(struct checkpoint *ck)
{
    if (ck->files == 1) { /* the usual small model: nothing to copy */
        ck->tensor = ck->file[0].tensor;
        ck->file[0].tensor = NULL;
        return OK;
    }
    ck->tensor = calloc((size_t)ck->tensors + 1, sizeof *ck->tensor);
    if (!ck->tensor) return no_memory(ck->dir);
    struct tensor_view *to = ck->tensor;
    for (int f = 0; f < ck->files; f++) {
        memcpy(to, ck->file[f].tensor, (size_t)ck->file[f].count * sizeof *to);
        to += ck->file[f].count;
        free(ck->file[f].tensor);
        ck->file[f].tensor = NULL;
    }
    return OK;
}

/* Open addressing, at most half full; a slot holds 1 + index into ck->tensor. */
static enum status build_table(struct checkpoint *ck)
{
    size_t slots = 16;
    TRY(gather_tensors(ck));
    while (slots < 2 * (size_t)ck->tensors) slots *= 2;
    uint32_t *slot = calloc(slots, sizeof *slot);
    if (!slot) return no_memory(ck->dir);
    ck->slot = slot;
    ck->slot_mask = slots - 1;
    for (int n = 0; n < ck->tensors; n++) {
        const struct tensor_view *t = &ck->tensor[n];
        size_t h = hash64(t->name, strlen(t->name), 0) & ck->slot_mask;
        for (; slot[h]; h = (h + 1) & ck->slot_mask) {
            const struct tensor_view *other = &ck->tensor[slot[h] - 1];
            if (strcmp(other->name, t->name) == 0)
                return error_set(ERR_INPUT, "%s: tensor %s is also in %s", t->file, t->name,
                                 other->file);
        }
        slot[h] = (uint32_t)n + 1;
    }
    return OK;
}

/* What the index promises must be where it says. */
static enum status check_index(const struct checkpoint *ck, const char *index, json_t *map)
{
    const char *name;
    json_t *file;
    json_object_foreach(map, name, file)
    {
        const struct tensor_view *t = checkpoint_find(ck, name);
        const char *want = json_string_value(file);
        const char *have = t ? strrchr(t->file, '/') + 1 : NULL;
        if (!have || strcmp(have, want) != 0)
            return error_set(ERR_INPUT, "%s: tensor %s should be in %s, found %s%s", index, name,
                             want, have ? "it in " : "it nowhere", have ? have : "");
    }
    return OK;
}

static enum status open_sharded(struct checkpoint *ck, const char *index)
{
    char *text = NULL;
    size_t bytes = 0;
    json_t *root = NULL;
    const char **files = NULL;
    int count = 0;
    enum status st = json_read_file(index, INDEX_BYTES_MAX, &text, &bytes);
    if (st == OK) st = json_parse_object(index, text, bytes, &root);
    if (st != OK) goto done;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        st = error_set(ERR_INPUT, "%s: weight_map is missing or not an object", index);
        goto done;
    }
    st = list_shards(index, map, &files, &count);
    if (st == OK) st = open_files(ck, files, count);
    if (st == OK) st = build_table(ck);
    if (st == OK) st = check_index(ck, index, map);
done:
    free(files);
    json_decref(root);
    free(text);
    return st;
}

static const char *const single_name = "model.safetensors";
static const char *const index_name = "model.safetensors.index.json";

static bool file_exists(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    bool there = path && access(path, F_OK) == 0;
    free(path);
    return there;
}

bool checkpoint_has_weights(const char *dir)
{
    return file_exists(dir, single_name) || file_exists(dir, index_name);
}

/* A single file wins over an index, as in the reference. */
static enum status open_weights(struct checkpoint *ck)
{
    if (file_exists(ck->dir, single_name)) {
        TRY(open_files(ck, &single_name, 1));
        return build_table(ck);
    }
    if (!file_exists(ck->dir, index_name))
        return error_set(ERR_INPUT, "%s: neither %s nor %s is here", ck->dir, single_name,
                         index_name);
    char *index = path_join(ck->dir, index_name);
    if (!index) return no_memory(ck->dir);
    enum status st = open_sharded(ck, index);
    free(index);
    return st;
}

enum status checkpoint_open(const char *dir, struct checkpoint **out)
{
    struct checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck) return no_memory(dir);
    enum status st = OK;
    ck->dir = strdup(dir);
    if (!ck->dir) st = no_memory(dir);
    if (st == OK) st = model_config_read(dir, &ck->config);
    if (st == OK) st = open_weights(ck);
    if (st == OK)
        *out = ck;
    else
        checkpoint_close(ck);
    return st;
}

void checkpoint_close(struct checkpoint *ck)
{
    if (!ck) return;
    for (int i = 0; i < ck->files; i++) safetensors_close(&ck->file[i]);
    free(ck->file);
    free(ck->tensor);
    if (!ck->packed) free((void *)(uintptr_t)ck->slot);
    free(ck->dir);
    free(ck);
}

const struct model_config *checkpoint_config(const struct checkpoint *ck)
{
    return &ck->config;
}

const char *checkpoint_dir(const struct checkpoint *ck)
{
    return ck->dir;
}

int checkpoint_tensor_count(const struct checkpoint *ck)
{
    return ck->tensors;
}

const struct tensor_view *checkpoint_tensor_at(const struct checkpoint *ck, int i)
{
    return &ck->tensor[i];
}

int checkpoint_file_count(const struct checkpoint *ck)
{
    return ck->files;
}

const struct tensor_view *checkpoint_find(const struct checkpoint *ck, const char *name)
{
    size_t h = hash64(name, strlen(name), 0) & ck->slot_mask;
    for (; ck->slot[h]; h = (h + 1) & ck->slot_mask) {
        const struct tensor_view *t = &ck->tensor[ck->slot[h] - 1];
        if (strcmp(t->name, name) == 0) return t;
    }
    return NULL;
}
