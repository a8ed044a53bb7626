// A CUDA driver and runtime without a device, for the host's side of CuPy: memory is the host's, every stream and event
// is done at once, and a kernel that is launched computes nothing. Names and meanings are those of NVIDIA's manuals.
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int Status;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101 };
// Attributes of a device, and what this one says of itself.
enum { THREADS_OF_A_BLOCK = 1, SHARED_MEMORY = 8, WARP = 10, MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 };
#define CAPABILITY 9
#define MEMORY (64ull << 30)

long long host_launches, host_modules, host_bytes;

// The driver: cuda.h

Status cuGetErrorName(int error, const char** name) { return *name = "an error", SUCCESS; }
Status cuGetErrorString(int error, const char** text) { return *text = "an error of a driver without a device", SUCCESS; }
Status cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Status cuCtxGetCurrent(void** context) { return *context = (void*)1, SUCCESS; }
Status cuCtxSetCurrent(void* context) { return SUCCESS; }
Status cuCtxGetDevice(int* device) { return *device = 0, SUCCESS; }
Status cuStreamGetCtx(void* stream, void** context) { return *context = (void*)1, SUCCESS; }
Status cuModuleLoadData(void** module, const void* image) { return ++host_modules, *module = malloc(8), SUCCESS; }
Status cuModuleUnload(void* module) { return free(module), SUCCESS; }
Status cuModuleGetFunction(void** function, void* module, const char* name) { return *function = strdup(name), SUCCESS; }
Status cuFuncGetAttribute(int* value, int attribute, void* function) { return *value = 0, SUCCESS; }
Status cuFuncSetAttribute(void* function, int attribute, int value) { return SUCCESS; }
Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void* f, int block, size_t shared) { return *n = 8, SUCCESS; }

Status cuModuleGetGlobal_v2(void** at, size_t* size, void* module, const char* name) {
  static char zeros[4096];
  return *at = zeros, *size = sizeof zeros, SUCCESS;
}

Status cuOccupancyMaxPotentialBlockSize(int* grid, int* block, void* f, void* sizes, size_t shared, int limit) {
  return *grid = 132, *block = 512, SUCCESS;
}

Status cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void* stream, void** arguments, void** more) {
  const int possible = gx && gy && gz && gx <= 0x7fffffff && gy <= 65535 && gz <= 65535 && bx && by && bz
                       && bx * by * bz <= 1024 && shared <= 48 << 10;
  return possible ? (++host_launches, SUCCESS) : INVALID_VALUE;
}

// The runtime: cuda_runtime_api.h. These take the place of what is linked into CuPy.

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

Status host_cudaGetLastError(void) { return SUCCESS; }
const char* host_cudaGetErrorName(int error) { return "an error"; }
const char* host_cudaGetErrorString(int error) { return "an error of a driver without a device"; }
Status host_cudaDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
Status host_cudaRuntimeGetVersion(int* version) { return *version = 13000, SUCCESS; }
Status host_cudaGetDevice(int* device) { return *device = 0, SUCCESS; }
Status host_cudaSetDevice(int device) { return device ? INVALID_DEVICE : SUCCESS; }
Status host_cudaGetDeviceCount(int* count) { return *count = 1, SUCCESS; }
Status host_cudaDeviceSynchronize(void) { return SUCCESS; }
Status host_cudaDeviceCanAccessPeer(int* can, int one, int other) { return *can = 0, SUCCESS; }
Status host_cudaDeviceGetPCIBusId(char* id, int length, int device) { return strncpy(id, "0000:00:00.0", length), SUCCESS; }

Status host_cudaDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case THREADS_OF_A_BLOCK: return *value = 1024, SUCCESS;
    case SHARED_MEMORY: return *value = 48 << 10, SUCCESS;
    case WARP: return *value = 32, SUCCESS;
    case MULTIPROCESSORS: return *value = 132, SUCCESS;
    case MAJOR: return *value = CAPABILITY, SUCCESS;
    case MINOR: return *value = 0, SUCCESS;
    default: return *value = 1, SUCCESS;
  }
}

Status host_cudaMalloc(void** at, size_t size) {
  *at = NULL;
  if (host_bytes + size > MEMORY || posix_memalign(at, 512, size ? size : 1)) return OUT_OF_MEMORY;
  return host_bytes += size, SUCCESS;
}
Status host_cudaFree(void* at) { return free(at), SUCCESS; }
Status host_cudaMallocAsync(void** at, size_t size, void* stream) { return host_cudaMalloc(at, size); }
Status host_cudaFreeAsync(void* at, void* stream) { return free(at), SUCCESS; }
Status host_cudaHostAlloc(void** at, size_t size, unsigned flags) { return host_cudaMalloc(at, size); }
Status host_cudaFreeHost(void* at) { return free(at), SUCCESS; }
Status host_cudaMemGetInfo(size_t* left, size_t* all) { return *left = MEMORY - host_bytes, *all = MEMORY, SUCCESS; }
Status host_cudaMemcpy(void* to, const void* from, size_t size, int kind) { return memmove(to, from, size), SUCCESS; }
Status host_cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
  return memmove(to, from, size), SUCCESS;
}
Status host_cudaMemset(void* at, int value, size_t size) { return memset(at, value, size), SUCCESS; }
Status host_cudaMemsetAsync(void* at, int value, size_t size, void* stream) { return memset(at, value, size), SUCCESS; }
Status host_cudaPointerGetAttributes(void* attributes, const void* pointer) {
  struct { int type, device; const void *on_device, *on_host; } found = {2, 0, pointer, pointer};
  return memcpy(attributes, &found, sizeof found), SUCCESS;
}

Status host_cudaStreamCreate(void** stream) { return *stream = malloc(8), SUCCESS; }
Status host_cudaStreamCreateWithFlags(void** stream, unsigned flags) { return *stream = malloc(8), SUCCESS; }
Status host_cudaStreamCreateWithPriority(void** stream, unsigned flags, int p) { return *stream = malloc(8), SUCCESS; }
Status host_cudaStreamGetFlags(void* stream, unsigned* flags) { return *flags = 1, SUCCESS; }
Status host_cudaStreamGetPriority(void* stream, int* priority) { return *priority = 0, SUCCESS; }
Status host_cudaStreamDestroy(void* stream) { return free(stream), SUCCESS; }
Status host_cudaStreamSynchronize(void* stream) { return SUCCESS; }
Status host_cudaStreamQuery(void* stream) { return SUCCESS; }
Status host_cudaStreamWaitEvent(void* stream, void* event) { return SUCCESS; }
Status host_cudaStreamIsCapturing(void* stream, int* capturing) { return *capturing = 0, SUCCESS; }
Status host_cudaEventCreate(void** event) { return *event = calloc(1, sizeof(double)), SUCCESS; }
Status host_cudaEventCreateWithFlags(void** event, unsigned flags) { return host_cudaEventCreate(event); }
Status host_cudaEventDestroy(void* event) { return free(event), SUCCESS; }
Status host_cudaEventRecord(void* event, void* stream) { return *(double*)event = now(), SUCCESS; }
Status host_cudaEventQuery(void* event) { return SUCCESS; }
Status host_cudaEventSynchronize(void* event) { return SUCCESS; }
Status host_cudaEventElapsedTime(float* ms, void* one, void* other) {
  return *ms = *(double*)other - *(double*)one, SUCCESS;
}
Status host_cudaProfilerStart(void) { return SUCCESS; }
Status host_cudaProfilerStop(void) { return SUCCESS; }
