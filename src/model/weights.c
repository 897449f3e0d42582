/* weights.c - lists what to pack, lays it out, packs it. Sources are read through the mapped
 * checkpoint; anything that is not already in the type and alignment the packing wants goes
 * through one FP32 buffer.
 */
#include "model/weights.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum item_kind { ITEM_MATRIX, ITEM_ABSORB_K, ITEM_ABSORB_V, ITEM_VECTOR };

struct weight_item {
    enum item_kind kind;
    enum dtype type;
    int layer, sources;
    enum tensor_role role[2];
    struct wmat *mat; /* ITEM_MATRIX: 1; ITEM_ABSORB_*: [heads] */
    float **vec;      /* ITEM_VECTOR */
    size_t offset, bytes, each_bytes;
};

static size_t align_up(size_t n)
{
    return (n + 63) / 64 * 64;
}

/* ---- sources -------------------------------------------------------------------------------- */

static enum dtype weight_type(const struct weights *w, bool fp8)
{
    if (w->numerics == NUM_FP32) return DT_F32;
    return fp8 ? DT_E4M3 : DT_BF16;
}

struct source {
    struct checkpoint_weight cw;
    struct weight_src src;
    float *temp, *scale_temp;
};

static void source_close(struct source *s)
{
    free(s->temp);
    free(s->scale_temp);
}

static enum status source_scales(struct source *s)
{
    const struct tensor_view *sc = &s->cw.scale;
    size_t count = (size_t)sc->shape[0] * (size_t)sc->shape[1];
    s->scale_temp = malloc(count * sizeof(float));
    if (!s->scale_temp) return error_set(ERR_RESOURCE, "%s: no memory for scales", sc->name);
    TRY(tensor_read_f32(sc, 0, count, s->scale_temp));
    s->src.scale = s->scale_temp;
    s->src.lds = (int)sc->shape[1];
    return OK;
}

/* One tensor as packing input for a destination of `type`. */
static enum status source_open(const struct weights *w, enum tensor_role role, int layer,
                               int expert, enum dtype type, struct source *s)
{
    memset(s, 0, sizeof *s);
    TRY(checkpoint_weight(w->ck, role, layer, expert, &s->cw));
    const struct tensor_view *v = &s->cw.data;
    int64_t n = v->shape[0], k = v->rank > 1 ? v->shape[1] : 1;
    s->src = (struct weight_src){.n = (int)n, .k = (int)k, .ldk = (int)k, .data = v->data};
    if (type == DT_E4M3 && s->cw.fp8) {
        s->src.type = DT_E4M3;
        return source_scales(s);
    }
    if (type == DT_BF16 && v->dtype == TENSOR_BF16 && (uintptr_t)v->data % 2 == 0) {
        s->src.type = DT_BF16;
        return OK;
    }
    s->temp = malloc((size_t)(n * k) * sizeof(float));
    if (!s->temp) return error_set(ERR_RESOURCE, "%s: no memory to convert it", v->name);
    s->src.type = DT_F32;
    s->src.data = s->temp;
    return checkpoint_weight_rows_f32(&s->cw, 0, n, s->temp);
}

/* ---- the list ------------------------------------------------------------------------------- */

/* n, k and whether it is FP8, for planning. */
static enum status role_shape(const struct weights *w, enum tensor_role role, int layer, int expert,
                              int *n, int *k, bool *fp8)
{
    struct checkpoint_weight cw;
    TRY(checkpoint_weight(w->ck, role, layer, expert, &cw));
    *n = (int)cw.data.shape[0];
    *k = cw.data.rank > 1 ? (int)cw.data.shape[1] : 1;
    *fp8 = cw.fp8;
    return OK;
}

static struct weight_item *item_new(struct weights *w, enum item_kind kind, int layer)
{
    struct weight_item *it = &w->item[w->items++];
    memset(it, 0, sizeof *it);
    it->kind = kind;
    it->layer = layer;
    return it;
}

static void item_place(struct weights *w, struct weight_item *it, size_t bytes)
{
    it->bytes = align_up(bytes);
    it->offset = w->shared_bytes;
    w->shared_bytes += it->bytes;
    w->part_bytes[tensor_role_part(it->role[0])] += it->bytes;
}

static enum status add_vector(struct weights *w, enum tensor_role role, int layer, float **vec)
{
    int n = 0, k = 0;
    bool fp8 = false;
    TRY(role_shape(w, role, layer, -1, &n, &k, &fp8));
    struct weight_item *it = item_new(w, ITEM_VECTOR, layer);
    it->role[0] = role;
    it->vec = vec;
    item_place(w, it, (size_t)n * sizeof(float));
    return OK;
}

/* Shape and packed size of one or two stacked tensors; type chosen unless forced (>= 0). */
static enum status stack_shape(struct weights *w, int sources, const enum tensor_role *role,
                               int layer, int expert, int forced, struct wmat *mat, size_t *bytes)
{
    bool all_fp8 = true;
    memset(mat, 0, sizeof *mat);
    for (int s = 0; s < sources; s++) {
        bool fp8 = false;
        TRY(role_shape(w, role[s], layer, expert, &mat->source_n[s], &mat->k, &fp8));
        mat->n += mat->source_n[s];
        all_fp8 = all_fp8 && fp8;
    }
    mat->sources = sources;
    mat->type = forced >= 0 ? (enum dtype)forced : weight_type(w, all_fp8);
    *bytes = w->k->gemm_packed_bytes(mat->type, mat->source_n, sources, mat->k);
    return OK;
}

static enum status add_matrix(struct weights *w, int layer, int sources, enum tensor_role r0,
                              enum tensor_role r1, int forced, struct wmat *mat)
{
    enum tensor_role role[2] = {r0, r1};
    size_t bytes = 0;
    TRY(stack_shape(w, sources, role, layer, -1, forced, mat, &bytes));
    struct weight_item *it = item_new(w, ITEM_MATRIX, layer);
    it->type = mat->type;
    it->sources = sources;
    it->role[0] = r0;
    it->role[1] = r1;
    it->mat = mat;
    item_place(w, it, bytes);
    return OK;
}

/* Per-head [n, k] slices of kv_b, dequantised once (BF16, or FP32 in the reference mode). */
static enum status add_absorbed(struct weights *w, enum item_kind kind, int layer, int n, int k,
                                struct wmat **mats)
{
    int heads = w->cfg->heads;
    enum dtype type = w->numerics == NUM_FP32 ? DT_F32 : DT_BF16;
    *mats = calloc((size_t)heads, sizeof **mats);
    if (!*mats) return error_set(ERR_RESOURCE, "no memory for %d heads", heads);
    struct weight_item *it = item_new(w, kind, layer);
    it->type = type;
    it->role[0] = ROLE_KV_B;
    it->mat = *mats;
    it->each_bytes = align_up(w->k->gemm_packed_bytes(type, &n, 1, k));
    for (int h = 0; h < heads; h++)
        (*mats)[h] = (struct wmat){.type = type, .n = n, .k = k, .sources = 1, .source_n = {n, 0}};
    item_place(w, it, it->each_bytes * (size_t)heads);
    w->absorbed_bytes += it->bytes;
    return OK;
}

static enum status plan_attention(struct weights *w, int l, struct layer_weights *lw)
{
    const struct model_config *c = w->cfg;
    TRY(add_vector(w, ROLE_ATTN_NORM, l, &lw->attn_norm));
    TRY(add_vector(w, ROLE_MLP_NORM, l, &lw->mlp_norm));
    TRY(add_vector(w, ROLE_KV_A_NORM, l, &lw->kv_a_norm));
    if (c->q_lora) {
        TRY(add_vector(w, ROLE_Q_A_NORM, l, &lw->q_a_norm));
        TRY(add_matrix(w, l, 2, ROLE_Q_A, ROLE_KV_A, -1, &lw->q_in));
        TRY(add_matrix(w, l, 1, ROLE_Q_B, ROLE_Q_B, -1, &lw->q_b));
    } else {
        TRY(add_matrix(w, l, 2, ROLE_Q, ROLE_KV_A, -1, &lw->q_in));
    }
    TRY(add_matrix(w, l, 1, ROLE_KV_B, ROLE_KV_B, -1, &lw->kv_b));
    TRY(add_absorbed(w, ITEM_ABSORB_K, l, c->kv_lora, c->dim_nope, &lw->w_uk));
    TRY(add_absorbed(w, ITEM_ABSORB_V, l, c->dim_v, c->kv_lora, &lw->w_uv));
    return add_matrix(w, l, 1, ROLE_O, ROLE_O, -1, &lw->o);
}

/* Private layout of the rank's experts: [moe layer][slot] up, down. */
static enum status plan_experts(struct weights *w, int l, struct layer_weights *lw)
{
    static const enum tensor_role up[2] = {ROLE_EXPERT_GATE, ROLE_EXPERT_UP};
    static const enum tensor_role down[1] = {ROLE_EXPERT_DOWN};
    int slots = w->local_slots;
    lw->expert_up = calloc((size_t)slots + 1, sizeof(struct wmat));
    lw->expert_down = calloc((size_t)slots + 1, sizeof(struct wmat));
    if (!lw->expert_up || !lw->expert_down)
        return error_set(ERR_RESOURCE, "no memory for %d expert slots", slots);
    size_t up_bytes = 0, down_bytes = 0;
    struct wmat u, d;
    TRY(stack_shape(w, 2, up, l, 0, -1, &u, &up_bytes));
    TRY(stack_shape(w, 1, down, l, 0, -1, &d, &down_bytes));
    for (int s = 0; s < slots; s++) {
        lw->expert_up[s] = u;
        lw->expert_down[s] = d;
    }
    w->experts_fp8 = w->experts_fp8 && u.type == DT_E4M3 && d.type == DT_E4M3;
    size_t bytes = (align_up(up_bytes) + align_up(down_bytes)) * (size_t)slots;
    w->private_bytes += bytes;
    w->part_bytes[PART_ROUTED] += bytes;
    return OK;
}

static enum status plan_layer(struct weights *w, int l)
{
    struct layer_weights *lw = &w->layer[l];
    const struct model_config *c = w->cfg;
    TRY(plan_attention(w, l, lw));
    lw->moe = model_config_layer_is_moe(c, l);
    if (!lw->moe) {
        TRY(add_matrix(w, l, 2, ROLE_DENSE_GATE, ROLE_DENSE_UP, -1, &lw->mlp_up));
        return add_matrix(w, l, 1, ROLE_DENSE_DOWN, ROLE_DENSE_DOWN, -1, &lw->mlp_down);
    }
    TRY(add_matrix(w, l, 1, ROLE_GATE, ROLE_GATE, DT_F32, &lw->gate));
    if (c->gate == MODEL_GATE_SIGMOID_NOAUX) TRY(add_vector(w, ROLE_GATE_BIAS, l, &lw->gate_bias));
    if (c->shared_experts) {
        TRY(add_matrix(w, l, 2, ROLE_SHARED_GATE, ROLE_SHARED_UP, -1, &lw->mlp_up));
        TRY(add_matrix(w, l, 1, ROLE_SHARED_DOWN, ROLE_SHARED_DOWN, -1, &lw->mlp_down));
    }
    return plan_experts(w, l, lw);
}

enum status weights_plan(const struct checkpoint *ck, const struct kernels *k,
                         enum numerics numerics, int local_slots, struct weights *w)
{
    enum { ITEMS_PER_LAYER = 16 };
    memset(w, 0, sizeof *w);
    w->ck = ck;
    w->cfg = checkpoint_config(ck);
    w->k = k;
    w->numerics = numerics;
    w->local_slots = local_slots;
    w->experts_fp8 = true;
    w->layer = calloc((size_t)w->cfg->layers, sizeof *w->layer);
    w->item = calloc((size_t)w->cfg->layers * ITEMS_PER_LAYER + 4, sizeof *w->item);
    if (!w->layer || !w->item) return error_set(ERR_RESOURCE, "no memory for the weight list");
    TRY(checkpoint_weight(ck, ROLE_EMBED, -1, -1, &w->embed));
    for (int l = 0; l < w->cfg->layers; l++) TRY(plan_layer(w, l));
    TRY(add_vector(w, ROLE_FINAL_NORM, -1, &w->final_norm));
    return add_matrix(w, -1, 1, ROLE_HEAD, ROLE_HEAD, -1, &w->head);
}

void weights_attach(struct weights *w, void *shared, void *private_region)
{
    for (int i = 0; i < w->items; i++) {
        struct weight_item *it = &w->item[i];
        char *at = (char *)shared + it->offset;
        if (it->kind == ITEM_VECTOR)
            *it->vec = (float *)(void *)at;
        else if (it->kind == ITEM_MATRIX)
            it->mat->data = at;
        else
            for (int h = 0; h < w->cfg->heads; h++)
                it->mat[h].data = at + it->each_bytes * (size_t)h;
    }
    char *p = private_region;
    for (int l = 0; l < w->cfg->layers; l++) {
        struct layer_weights *lw = &w->layer[l];
        if (!lw->moe) continue;
        for (int s = 0; s < w->local_slots; s++) {
            struct wmat *u = &lw->expert_up[s], *d = &lw->expert_down[s];
            u->data = p;
            p += align_up(w->k->gemm_packed_bytes(u->type, u->source_n, u->sources, u->k));
            d->data = p;
            p += align_up(w->k->gemm_packed_bytes(d->type, d->source_n, d->sources, d->k));
        }
    }
}

/* ---- packing -------------------------------------------------------------------------------- */

static void count_bytes(struct weights *w, const struct checkpoint_weight *cw)
{
    uint64_t n = cw->data.bytes + (cw->fp8 ? cw->scale.bytes : 0);
#pragma omp atomic
    w->bytes_read += n;
}

static enum status pack_stack(struct weights *w, int layer, int expert, int sources,
                              const enum tensor_role *role, struct wmat *mat)
{
    struct source src[2];
    struct weight_src in[2];
    memset(src, 0, sizeof src);
    enum status st = OK;
    for (int s = 0; s < sources && st == OK; s++) {
        st = source_open(w, role[s], layer, expert, mat->type, &src[s]);
        in[s] = src[s].src;
        if (st == OK) count_bytes(w, &src[s].cw);
    }
    /* A stack is packed from one type: what cannot stay as it is becomes FP32. */
    if (st == OK && sources == 2 && in[0].type != in[1].type) {
        for (int s = 0; s < 2 && st == OK; s++) {
            if (in[s].type == DT_F32) continue;
            source_close(&src[s]);
            st = source_open(w, role[s], layer, expert, DT_F32, &src[s]);
            in[s] = src[s].src;
        }
    }
    if (st == OK) {
        struct wmat out;
        void *dst = (void *)(uintptr_t)mat->data;
        st = w->k->gemm_pack(mat->type, in, sources, dst, &out);
        if (st == OK) *mat = out;
    }
    for (int s = 0; s < sources; s++) source_close(&src[s]);
    return st;
}

/* kv_b's rows of head h: nope rows then v rows. K is packed transposed. */
static enum status pack_absorbed(struct weights *w, struct weight_item *it)
{
    const struct model_config *c = w->cfg;
    int rows = c->dim_nope + c->dim_v, latent = c->kv_lora;
    struct checkpoint_weight cw;
    TRY(checkpoint_weight(w->ck, ROLE_KV_B, it->layer, -1, &cw));
    float *all = malloc((size_t)rows * (size_t)latent * 2 * sizeof(float));
    if (!all) return error_set(ERR_RESOURCE, "no memory to absorb kv_b_proj");
    float *turned = all + (size_t)rows * (size_t)latent;
    enum status st = OK;
    for (int h = 0; h < c->heads && st == OK; h++) {
        st = checkpoint_weight_rows_f32(&cw, (int64_t)h * rows, rows, all);
        if (st != OK) break;
        struct weight_src src = {.type = DT_F32};
        if (it->kind == ITEM_ABSORB_K) {
            for (int i = 0; i < c->dim_nope; i++)
                for (int j = 0; j < latent; j++)
                    turned[(size_t)j * (size_t)c->dim_nope + (size_t)i] =
                        all[(size_t)i * (size_t)latent + (size_t)j];
            src.n = latent, src.k = src.ldk = c->dim_nope, src.data = turned;
        } else {
            src.n = c->dim_v, src.k = src.ldk = latent;
            src.data = all + (size_t)c->dim_nope * (size_t)latent;
        }
        void *dst = (void *)(uintptr_t)it->mat[h].data;
        st = w->k->gemm_pack(it->type, &src, 1, dst, &it->mat[h]);
    }
    free(all);
    return st;
}

static enum status check(const struct weights *w)
{
    return w->check && omp_get_thread_num() == 0 ? w->check() : OK;
}

static enum status pack_item(struct weights *w, struct weight_item *it)
{
    TRY(check(w));
    if (it->kind == ITEM_MATRIX)
        return pack_stack(w, it->layer, -1, it->sources, it->role, it->mat);
    if (it->kind != ITEM_VECTOR) return pack_absorbed(w, it);
    struct checkpoint_weight cw;
    TRY(checkpoint_weight(w->ck, it->role[0], it->layer, -1, &cw));
    count_bytes(w, &cw);
    return tensor_read_f32(&cw.data, 0, (size_t)cw.data.shape[0], *it->vec);
}

enum status weights_pack_shared(struct weights *w, int worker, int workers, int threads)
{
    enum status st = OK;
    /* Items go to the worker with the fewest bytes so far: every rank finds the same split. */
    size_t *load = calloc((size_t)workers, sizeof *load);
    char *mine = calloc((size_t)w->items + 1, 1);
    if (!load || !mine) {
        free(load);
        free(mine);
        return error_set(ERR_RESOURCE, "no memory to share out the packing");
    }
    for (int i = 0; i < w->items; i++) {
        int best = 0;
        for (int r = 1; r < workers; r++)
            if (load[r] < load[best]) best = r;
        load[best] += w->item[i].bytes;
        mine[i] = best == worker;
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int i = 0; i < w->items; i++) {
        if (!mine[i] || st != OK) continue;
        enum status one = pack_item(w, &w->item[i]);
        if (one != OK) {
#pragma omp critical
            st = one;
        }
    }
    free(load);
    free(mine);
    return st;
}

enum status weights_pack_experts(struct weights *w, const int32_t *slot_expert, int threads)
{
    static const enum tensor_role up[2] = {ROLE_EXPERT_GATE, ROLE_EXPERT_UP};
    static const enum tensor_role down[1] = {ROLE_EXPERT_DOWN};
    enum status st = OK;
    int slots = w->local_slots, total = slots * w->cfg->layers;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int i = 0; i < total; i++) {
        struct layer_weights *lw = &w->layer[i / slots];
        if (!lw->moe || st != OK) continue;
        int l = i / slots, s = i % slots, x = slot_expert[i];
        enum status one = check(w);
        if (one == OK) one = pack_stack(w, l, x, 2, up, &lw->expert_up[s]);
        if (one == OK) one = pack_stack(w, l, x, 1, down, &lw->expert_down[s]);
        if (one != OK) {
#pragma omp critical
            st = one;
        }
    }
    return st;
}

void weights_free(struct weights *w)
{
    for (int l = 0; w->layer && l < w->cfg->layers; l++) {
        free(w->layer[l].w_uk);
        free(w->layer[l].w_uv);
        free(w->layer[l].expert_up);
        free(w->layer[l].expert_down);
    }
    free(w->layer);
    free(w->item);
    memset(w, 0, sizeof *w);
}

void weights_embed(const struct weights *w, int m, const int32_t *tokens, float *out)
{
    size_t n = (size_t)w->cfg->hidden;
    for (int i = 0; i < m; i++)
        (void)tensor_read_f32(&w->embed.data, (size_t)tokens[i] * n, n, out + (size_t)i * n);
}
