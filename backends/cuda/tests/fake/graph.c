/* Graphs: chains of works. */
#include "fake.h"

Work *copy_work(uint64_t dst, uint64_t src, size_t size);
Work *fill_work(uint64_t dst, uint32_t value, unsigned element, size_t count);

enum { MAX_NODES = 256 };
typedef struct Node {
    char kind; /* 'k'ernel, 'c'opy, 's'et, 'g'raph; captured works are kernels */
    Work *work;
    Graph *child;
} Node;
struct Graph {
    Node *nodes[MAX_NODES];
    int count;
};
typedef struct Executable {
    Graph *copy;
    /* The nodes that its own were made of. */
    Node *origins[MAX_NODES];
} Executable;

static void live(int change) {
    pthread_mutex_lock(&fake_lock);
    fake_count("graph", change);
    pthread_mutex_unlock(&fake_lock);
}

Graph *graph_new(void) {
    live(1);
    return calloc(1, sizeof(Graph));
}

static void graph_free(Graph *graph) {
    for (int i = 0; i < graph->count; i++) {
        if (graph->nodes[i]->child) graph_free(graph->nodes[i]->child);
        free(graph->nodes[i]->work);
        free(graph->nodes[i]);
    }
    memset(graph, 0xDD, sizeof *graph);
    free(graph);
    live(-1);
}

static Work *work_copy(const Work *work) { return work_new(work->run, work->data, work->size); }

static Graph *graph_copy(const Graph *graph) {
    Graph *copy = graph_new();
    for (int i = 0; i < graph->count; i++) {
        Node *node = calloc(1, sizeof *node), *from = graph->nodes[i];
        *node = (Node){from->kind, from->work ? work_copy(from->work) : NULL,
                       from->child ? graph_copy(from->child) : NULL};
        copy->nodes[copy->count++] = node;
    }
    return copy;
}

static int append(Graph *graph, Node node, Node **out) {
    if (graph->count == MAX_NODES) abort();
    graph->nodes[graph->count] = malloc(sizeof node);
    *graph->nodes[graph->count] = node;
    if (out) *out = graph->nodes[graph->count];
    graph->count++;
    return 0;
}

void graph_append(Graph *graph, Work *work) { append(graph, (Node){'k', work, NULL}, NULL); }

/* A chain: each node depends on the one before it, and on no other. */
static bool chained(const Graph *graph, Node *const *before, size_t count) {
    return graph->count ? count == 1 && before[0] == graph->nodes[graph->count - 1] : !count;
}

int cuGraphCreate(Graph **out, unsigned flags) {
    ENTER(cuGraphCreate);
    *out = graph_new();
    return flags;
}

int cuGraphDestroy(Graph *graph) {
    fake_call("cuGraphDestroy");
    graph_free(graph);
    return 0;
}

typedef struct {
    Function *function;
    unsigned grid[3], block[3], shared;
    void **params, **extra;
} KernelParams;

typedef struct {
    size_t src_x, src_y, src_z, src_lod;
    unsigned src_type;
    const void *src_host;
    uint64_t src;
    void *src_array, *reserved0;
    size_t src_pitch, src_height, dst_x, dst_y, dst_z, dst_lod;
    unsigned dst_type;
    void *dst_host;
    uint64_t dst;
    void *dst_array, *reserved1;
    size_t dst_pitch, dst_height, width, height, depth;
} CopyParams;

typedef struct {
    uint64_t dst;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
} SetParams;

static Work *kernel_work(const KernelParams *p) {
    return p->extra ? NULL : launch_work(p->function, p->grid, p->block, p->shared, p->params);
}
static Work *node_copy_work(const CopyParams *p, Context *context) {
    bool plain = p->src_type == 2 && p->dst_type == 2 && p->width && p->height == 1 && p->depth == 1 &&
                 !p->src_x && !p->dst_x && !p->src_host && !p->dst_host && context == fake_current;
    return plain ? copy_work(p->dst, p->src, p->width) : NULL;
}
static Work *set_work(const SetParams *p, Context *context) {
    bool plain = p->width && p->height == 1 && (p->element == 1 || p->element == 2 || p->element == 4) &&
                 p->dst % p->element == 0 && context == fake_current;
    return plain ? fill_work(p->dst, p->value, p->element, p->width) : NULL;
}

static int add(Node **out, Graph *graph, Node *const *before, size_t count, char kind, Work *work) {
    if (!work) return INVALID_VALUE;
    if (!chained(graph, before, count)) return free(work), INVALID_VALUE;
    return append(graph, (Node){kind, work, NULL}, out);
}

int cuGraphAddKernelNode(Node **out, Graph *graph, Node *const *before, size_t count, const KernelParams *params) {
    ENTER(cuGraphAddKernelNode);
    return add(out, graph, before, count, 'k', kernel_work(params));
}

int cuGraphAddMemcpyNode(
    Node **out, Graph *graph, Node *const *before, size_t count, const CopyParams *params, Context *context) {
    ENTER(cuGraphAddMemcpyNode);
    return add(out, graph, before, count, 'c', node_copy_work(params, context));
}

int cuGraphAddMemsetNode(
    Node **out, Graph *graph, Node *const *before, size_t count, const SetParams *params, Context *context) {
    ENTER(cuGraphAddMemsetNode);
    return add(out, graph, before, count, 's', set_work(params, context));
}

int cuGraphAddChildGraphNode(Node **out, Graph *graph, Node *const *before, size_t count, Graph *child) {
    ENTER(cuGraphAddChildGraphNode);
    if (!chained(graph, before, count)) return INVALID_VALUE;
    return append(graph, (Node){'g', NULL, graph_copy(child)}, out);
}

int cuGraphInstantiateWithFlags(Executable **out, Graph *graph, unsigned long long flags) {
    ENTER(cuGraphInstantiateWithFlags);
    if (flags) return INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    (*out)->copy = graph_copy(graph);
    memcpy((*out)->origins, graph->nodes, sizeof graph->nodes);
    return 0;
}

int cuGraphExecDestroy(Executable *executable) {
    fake_call("cuGraphExecDestroy");
    graph_free(executable->copy);
    free(executable);
    return 0;
}

static Node *own(Executable *executable, Node *node, char kind) {
    for (int i = 0; i < executable->copy->count; i++)
        if (executable->origins[i] == node && executable->copy->nodes[i]->kind == kind)
            return executable->copy->nodes[i];
    return NULL;
}

static int change(Executable *executable, Node *node, char kind, Work *work) {
    Node *target = own(executable, node, kind);
    if (!work || !target) return free(work), INVALID_VALUE;
    free(target->work);
    target->work = work;
    return 0;
}

int cuGraphExecKernelNodeSetParams(Executable *executable, Node *node, const KernelParams *params) {
    ENTER(cuGraphExecKernelNodeSetParams);
    return change(executable, node, 'k', kernel_work(params));
}
int cuGraphExecMemcpyNodeSetParams(Executable *executable, Node *node, const CopyParams *params, Context *context) {
    ENTER(cuGraphExecMemcpyNodeSetParams);
    return change(executable, node, 'c', node_copy_work(params, context));
}
int cuGraphExecMemsetNodeSetParams(Executable *executable, Node *node, const SetParams *params, Context *context) {
    ENTER(cuGraphExecMemsetNodeSetParams);
    return change(executable, node, 's', set_work(params, context));
}
int cuGraphExecChildGraphNodeSetParams(Executable *executable, Node *node, Graph *child) {
    ENTER(cuGraphExecChildGraphNodeSetParams);
    Node *target = own(executable, node, 'g');
    if (!target || target->child->count != child->count) return INVALID_VALUE;
    graph_free(target->child);
    target->child = graph_copy(child);
    return 0;
}

static int enqueue(const Graph *graph, Stream *stream) {
    for (int i = 0; i < graph->count; i++) {
        Node *node = graph->nodes[i];
        int code = node->child ? enqueue(node->child, stream) : stream_enqueue(stream, work_copy(node->work));
        if (code) return code;
    }
    return 0;
}

int cuGraphLaunch(Executable *executable, Stream *stream) {
    ENTER(cuGraphLaunch);
    return enqueue(executable->copy, stream);
}

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    ENTER(cuStreamBeginCapture_v2);
    if (mode != 2 || stream_captured(stream)) return INVALID_VALUE;
    stream_capture(stream, graph_new());
    return 0;
}

int cuStreamEndCapture(Stream *stream, Graph **out) {
    ENTER(cuStreamEndCapture);
    *out = stream_captured(stream);
    stream_capture(stream, NULL);
    return *out ? 0 : INVALID_VALUE;
}
