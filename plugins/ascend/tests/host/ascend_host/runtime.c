// Devices, contexts, streams, events and graph capture. Streams run in issue order and are always finished.
#include "fake.h"

#include <time.h>

static __thread int thread_device = -1;
static int last_device = -1;

int fake_device(void) { return thread_device >= 0 ? thread_device : last_device >= 0 ? last_device : 0; }

aclError aclInit(const char *path) { return ACL_SUCCESS; }
aclError aclFinalize(void) { return ACL_SUCCESS; }
const char *aclGetRecentErrMsg(void) { return ""; }
const char *aclrtGetSocName(void) { const char *chip = getenv("FAKE_ACL_SOC"); return chip && *chip ? chip : "Ascend910B3"; }
aclError aclrtGetDeviceCount(uint32_t *count) { *count = (uint32_t)fake_number("FAKE_ACL_DEVICES", 1); return ACL_SUCCESS; }

aclError aclrtSetDevice(int32_t device) {
    uint32_t count;
    aclrtGetDeviceCount(&count);
    if (device < 0 || device >= (int32_t)count || device >= MAX_DEVICES) return ACL_NO_DEVICE;
    thread_device = last_device = device;
    return ACL_SUCCESS;
}
aclError aclrtGetDevice(int32_t *device) {
    if (thread_device < 0 && last_device < 0) return ACL_NO_CONTEXT;
    *device = fake_device();
    return ACL_SUCCESS;
}
aclError aclrtResetDevice(int32_t device) { return ACL_SUCCESS; }
aclError aclrtSynchronizeDevice(void) { return ACL_SUCCESS; }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) { return ACL_SUCCESS; }
aclError aclrtGetCurrentContext(aclrtContext *context) { static int contexts[MAX_DEVICES]; *context = &contexts[fake_device()]; return ACL_SUCCESS; }
aclError aclrtSetCurrentContext(aclrtContext context) { return ACL_SUCCESS; }
aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) { if (active) *active = last_device >= 0; return ACL_SUCCESS; }
aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t a, int32_t b) { *can = 1; return ACL_SUCCESS; }
aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) { return ACL_SUCCESS; }
aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t *value) { *value = 24; return ACL_SUCCESS; }
aclError aclrtGetDeviceInfo(uint32_t device, aclrtDevAttr attribute, int64_t *value) { *value = 24; return ACL_SUCCESS; }
aclError aclGetCannAttribute(aclCannAttr attribute, int32_t *value) { *value = 1; return ACL_SUCCESS; }
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t timeout) { return ACL_SUCCESS; }
aclError aclrtSetOpWaitTimeout(uint32_t timeout) { return ACL_SUCCESS; }

// --- streams and events ----------------------------------------------------------------------------------------
typedef struct { int id, device; } stream_t;
typedef struct { struct timespec time; } event_t;
static int next_stream;

aclError aclrtCreateStream(aclrtStream *out) {
    stream_t *s = calloc(1, sizeof *s);
    s->id = ++next_stream;
    s->device = fake_device();
    fake_stats[s->device].streams++;
    *out = s;
    return ACL_SUCCESS;
}
aclError aclrtCreateStreamWithConfig(aclrtStream *out, uint32_t priority, uint32_t flags) { return aclrtCreateStream(out); }
aclError aclrtDestroyStream(aclrtStream s) { return ACL_SUCCESS; }
aclError aclrtDestroyStreamForce(aclrtStream s) { return ACL_SUCCESS; }
aclError aclrtSynchronizeStream(aclrtStream s) { return ACL_SUCCESS; }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t timeout) { return ACL_SUCCESS; }
aclError aclrtStreamQuery(aclrtStream s, aclrtStreamStatus *status) { *status = ACL_STREAM_STATUS_COMPLETE; return ACL_SUCCESS; }
aclError aclrtStreamGetId(aclrtStream s, int32_t *id) { *id = s ? ((stream_t *)s)->id : 0; return ACL_SUCCESS; }

aclError aclrtCreateEventWithFlag(aclrtEvent *out, uint32_t flags) {
    *out = calloc(1, sizeof(event_t));
    fake_stats[fake_device()].events++;
    return ACL_SUCCESS;
}
aclError aclrtCreateEventExWithFlag(aclrtEvent *out, uint32_t flags) { return aclrtCreateEventWithFlag(out, flags); }
aclError aclrtDestroyEvent(aclrtEvent e) { free(e); return ACL_SUCCESS; }
aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s) { clock_gettime(CLOCK_MONOTONIC, &((event_t *)e)->time); return ACL_SUCCESS; }
aclError aclrtResetEvent(aclrtEvent e, aclrtStream s) { return ACL_SUCCESS; }
aclError aclrtStreamWaitEvent(aclrtStream s, aclrtEvent e) { return ACL_SUCCESS; }
aclError aclrtSynchronizeEvent(aclrtEvent e) { return ACL_SUCCESS; }
aclError aclrtQueryEventStatus(aclrtEvent e, aclrtEventRecordedStatus *status) { *status = ACL_EVENT_RECORDED_STATUS_COMPLETE; return ACL_SUCCESS; }
aclError aclrtQueryEventWaitStatus(aclrtEvent e, aclrtEventWaitStatus *status) { *status = ACL_EVENT_WAIT_STATUS_COMPLETE; return ACL_SUCCESS; }
aclError aclrtEventElapsedTime(float *ms, aclrtEvent from, aclrtEvent to) {
    struct timespec a = ((event_t *)from)->time, b = ((event_t *)to)->time;
    *ms = (float)((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6);
    return ACL_SUCCESS;
}

// --- graphs: capture state and a count of replays; the emulator replays the work itself ------------------------
typedef struct { int replays; } graph_t;
static graph_t *capturing;

aclError aclmdlRICaptureBegin(aclrtStream s, aclmdlRICaptureMode mode) {
    if (capturing) return ACL_ERROR_INVALID_PARAM;
    capturing = calloc(1, sizeof *capturing);
    return ACL_SUCCESS;
}
aclError aclmdlRICaptureGetInfo(aclrtStream s, aclmdlRICaptureStatus *status, aclmdlRI *graph) {
    *status = capturing ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    if (graph) *graph = capturing;
    return ACL_SUCCESS;
}
aclError aclmdlRICaptureEnd(aclrtStream s, aclmdlRI *graph) {
    if (!capturing) return ACL_ERROR_INVALID_PARAM;
    *graph = capturing;
    capturing = NULL;
    fake_stats[fake_device()].captures++;
    return ACL_SUCCESS;
}
aclError aclmdlRIExecuteAsync(aclmdlRI graph, aclrtStream s) { ((graph_t *)graph)->replays++; fake_stats[fake_device()].replays++; return ACL_SUCCESS; }
aclError aclmdlRIDestroy(aclmdlRI graph) { free(graph); return ACL_SUCCESS; }
aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode *mode) { return ACL_SUCCESS; }
