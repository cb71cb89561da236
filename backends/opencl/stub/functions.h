/*
 * Every entry point that the bindings declare, as a list to be expanded.
 *
 * Types are written as their machine representation, and no OpenCL header is needed:
 * OpenCL 3.0 API specification, appendix "Host environment scalar data types".
 */
#ifndef HALITE_OPENCL_FUNCTIONS_H
#define HALITE_OPENCL_FUNCTIONS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CALLED __stdcall
#else
#define CALLED
#endif

typedef void *P;    /* handles, pointers, callbacks */
typedef size_t Z;
typedef int32_t I;
typedef uint32_t U; /* numbers, names of queries, booleans */
typedef uint64_t W; /* bit fields */

/*
 * CODE returns an error code, MAKE returns an object and writes its code to the last parameter, GIVE returns an
 * address and RUN nothing.
 */
#define EACH_FUNCTION(CODE, MAKE, GIVE, RUN)                                                                          \
    CODE(clGetPlatformIDs, (U a, P b, P c), (a, b, c))                                                                \
    CODE(clGetPlatformInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                               \
    CODE(clGetDeviceIDs, (P a, W b, U c, P d, P e), (a, b, c, d, e))                                                  \
    CODE(clGetDeviceInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                 \
    CODE(clCreateSubDevices, (P a, P b, U c, P d, P e), (a, b, c, d, e))                                              \
    CODE(clRetainDevice, (P a), (a))                                                                                  \
    CODE(clReleaseDevice, (P a), (a))                                                                                 \
    CODE(clSetDefaultDeviceCommandQueue, (P a, P b, P c), (a, b, c))                                                  \
    CODE(clGetDeviceAndHostTimer, (P a, P b, P c), (a, b, c))                                                         \
    CODE(clGetHostTimer, (P a, P b), (a, b))                                                                          \
    MAKE(clCreateContext, (P a, U b, P c, P d, P e, I *error), (a, b, c, d, e, error))                                \
    MAKE(clCreateContextFromType, (P a, W b, P c, P d, I *error), (a, b, c, d, error))                                \
    CODE(clRetainContext, (P a), (a))                                                                                 \
    CODE(clReleaseContext, (P a), (a))                                                                                \
    CODE(clGetContextInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                \
    MAKE(clCreateCommandQueue, (P a, P b, W c, I *error), (a, b, c, error))                                           \
    MAKE(clCreateCommandQueueWithProperties, (P a, P b, P c, I *error), (a, b, c, error))                             \
    CODE(clRetainCommandQueue, (P a), (a))                                                                            \
    CODE(clReleaseCommandQueue, (P a), (a))                                                                           \
    CODE(clGetCommandQueueInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                           \
    MAKE(clCreateBuffer, (P a, W b, Z c, P d, I *error), (a, b, c, d, error))                                         \
    MAKE(clCreateSubBuffer, (P a, W b, U c, P d, I *error), (a, b, c, d, error))                                      \
    MAKE(clCreateImage2D, (P a, W b, P c, Z d, Z e, Z f, P g, I *error), (a, b, c, d, e, f, g, error))                \
    MAKE(clCreateImage3D, (P a, W b, P c, Z d, Z e, Z f, Z g, Z h, P i, I *error),                                    \
        (a, b, c, d, e, f, g, h, i, error))                                                                           \
    MAKE(clCreateImage, (P a, W b, P c, P d, P e, I *error), (a, b, c, d, e, error))                                  \
    MAKE(clCreatePipe, (P a, W b, U c, U d, P e, I *error), (a, b, c, d, e, error))                                   \
    CODE(clRetainMemObject, (P a), (a))                                                                               \
    CODE(clReleaseMemObject, (P a), (a))                                                                              \
    CODE(clGetSupportedImageFormats, (P a, W b, U c, U d, P e, P f), (a, b, c, d, e, f))                              \
    CODE(clGetMemObjectInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                              \
    CODE(clGetImageInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                  \
    CODE(clGetPipeInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                   \
    CODE(clSetMemObjectDestructorCallback, (P a, P b, P c), (a, b, c))                                                \
    GIVE(clSVMAlloc, (P a, W b, Z c, U d), (a, b, c, d))                                                              \
    RUN(clSVMFree, (P a, P b), (a, b))                                                                                \
    MAKE(clCreateSampler, (P a, U b, U c, U d, I *error), (a, b, c, d, error))                                        \
    MAKE(clCreateSamplerWithProperties, (P a, P b, I *error), (a, b, error))                                          \
    CODE(clRetainSampler, (P a), (a))                                                                                 \
    CODE(clReleaseSampler, (P a), (a))                                                                                \
    CODE(clGetSamplerInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                \
    MAKE(clCreateProgramWithSource, (P a, U b, P c, P d, I *error), (a, b, c, d, error))                              \
    MAKE(clCreateProgramWithBinary, (P a, U b, P c, P d, P e, P f, I *error), (a, b, c, d, e, f, error))              \
    MAKE(clCreateProgramWithBuiltInKernels, (P a, U b, P c, P d, I *error), (a, b, c, d, error))                      \
    MAKE(clCreateProgramWithIL, (P a, P b, Z c, I *error), (a, b, c, error))                                          \
    CODE(clRetainProgram, (P a), (a))                                                                                 \
    CODE(clReleaseProgram, (P a), (a))                                                                                \
    CODE(clBuildProgram, (P a, U b, P c, P d, P e, P f), (a, b, c, d, e, f))                                          \
    CODE(clUnloadCompiler, (void), ())                                                                                \
    CODE(clCompileProgram, (P a, U b, P c, P d, U e, P f, P g, P h, P i), (a, b, c, d, e, f, g, h, i))                \
    MAKE(clLinkProgram, (P a, U b, P c, P d, U e, P f, P g, P h, I *error), (a, b, c, d, e, f, g, h, error))          \
    CODE(clGetProgramInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                \
    CODE(clGetProgramBuildInfo, (P a, P b, U c, Z d, P e, P f), (a, b, c, d, e, f))                                   \
    MAKE(clCreateKernel, (P a, P b, I *error), (a, b, error))                                                         \
    CODE(clCreateKernelsInProgram, (P a, U b, P c, P d), (a, b, c, d))                                                \
    MAKE(clCloneKernel, (P a, I *error), (a, error))                                                                  \
    CODE(clRetainKernel, (P a), (a))                                                                                  \
    CODE(clReleaseKernel, (P a), (a))                                                                                 \
    CODE(clSetKernelArg, (P a, U b, Z c, P d), (a, b, c, d))                                                          \
    CODE(clSetKernelArgSVMPointer, (P a, U b, P c), (a, b, c))                                                        \
    CODE(clSetKernelExecInfo, (P a, U b, Z c, P d), (a, b, c, d))                                                     \
    CODE(clGetKernelInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                 \
    CODE(clGetKernelArgInfo, (P a, U b, U c, Z d, P e, P f), (a, b, c, d, e, f))                                      \
    CODE(clGetKernelWorkGroupInfo, (P a, P b, U c, Z d, P e, P f), (a, b, c, d, e, f))                                \
    CODE(clGetKernelSubGroupInfo, (P a, P b, U c, Z d, P e, Z f, P g, P h), (a, b, c, d, e, f, g, h))                 \
    CODE(clWaitForEvents, (U a, P b), (a, b))                                                                         \
    CODE(clGetEventInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                                  \
    MAKE(clCreateUserEvent, (P a, I *error), (a, error))                                                              \
    CODE(clRetainEvent, (P a), (a))                                                                                   \
    CODE(clReleaseEvent, (P a), (a))                                                                                  \
    CODE(clSetUserEventStatus, (P a, I b), (a, b))                                                                    \
    CODE(clSetEventCallback, (P a, I b, P c, P d), (a, b, c, d))                                                      \
    CODE(clGetEventProfilingInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                         \
    CODE(clFlush, (P a), (a))                                                                                         \
    CODE(clFinish, (P a), (a))                                                                                        \
    CODE(clEnqueueReadBuffer, (P a, P b, U c, Z d, Z e, P f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))             \
    CODE(clEnqueueReadBufferRect, (P a, P b, U c, P d, P e, P f, Z g, Z h, Z i, Z j, P k, U l, P m, P n),             \
        (a, b, c, d, e, f, g, h, i, j, k, l, m, n))                                                                   \
    CODE(clEnqueueWriteBuffer, (P a, P b, U c, Z d, Z e, P f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))            \
    CODE(clEnqueueWriteBufferRect, (P a, P b, U c, P d, P e, P f, Z g, Z h, Z i, Z j, P k, U l, P m, P n),            \
        (a, b, c, d, e, f, g, h, i, j, k, l, m, n))                                                                   \
    CODE(clEnqueueFillBuffer, (P a, P b, P c, Z d, Z e, Z f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))             \
    CODE(clEnqueueCopyBuffer, (P a, P b, P c, Z d, Z e, Z f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))             \
    CODE(clEnqueueCopyBufferRect, (P a, P b, P c, P d, P e, P f, Z g, Z h, Z i, Z j, U k, P l, P m),                  \
        (a, b, c, d, e, f, g, h, i, j, k, l, m))                                                                      \
    CODE(clEnqueueReadImage, (P a, P b, U c, P d, P e, Z f, Z g, P h, U i, P j, P k),                                 \
        (a, b, c, d, e, f, g, h, i, j, k))                                                                            \
    CODE(clEnqueueWriteImage, (P a, P b, U c, P d, P e, Z f, Z g, P h, U i, P j, P k),                                \
        (a, b, c, d, e, f, g, h, i, j, k))                                                                            \
    CODE(clEnqueueFillImage, (P a, P b, P c, P d, P e, U f, P g, P h), (a, b, c, d, e, f, g, h))                      \
    CODE(clEnqueueCopyImage, (P a, P b, P c, P d, P e, P f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))              \
    CODE(clEnqueueCopyImageToBuffer, (P a, P b, P c, P d, P e, Z f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))      \
    CODE(clEnqueueCopyBufferToImage, (P a, P b, P c, Z d, P e, P f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))      \
    MAKE(clEnqueueMapBuffer, (P a, P b, U c, W d, Z e, Z f, U g, P h, P i, I *error),                                 \
        (a, b, c, d, e, f, g, h, i, error))                                                                           \
    MAKE(clEnqueueMapImage, (P a, P b, U c, W d, P e, P f, P g, P h, U i, P j, P k, I *error),                        \
        (a, b, c, d, e, f, g, h, i, j, k, error))                                                                     \
    CODE(clEnqueueUnmapMemObject, (P a, P b, P c, U d, P e, P f), (a, b, c, d, e, f))                                 \
    CODE(clEnqueueMigrateMemObjects, (P a, U b, P c, W d, U e, P f, P g), (a, b, c, d, e, f, g))                      \
    CODE(clEnqueueNDRangeKernel, (P a, P b, U c, P d, P e, P f, U g, P h, P i), (a, b, c, d, e, f, g, h, i))          \
    CODE(clEnqueueTask, (P a, P b, U c, P d, P e), (a, b, c, d, e))                                                   \
    CODE(clEnqueueNativeKernel, (P a, P b, P c, Z d, U e, P f, P g, U h, P i, P j), (a, b, c, d, e, f, g, h, i, j))   \
    CODE(clEnqueueMarker, (P a, P b), (a, b))                                                                         \
    CODE(clEnqueueMarkerWithWaitList, (P a, U b, P c, P d), (a, b, c, d))                                             \
    CODE(clEnqueueWaitForEvents, (P a, U b, P c), (a, b, c))                                                          \
    CODE(clEnqueueBarrierWithWaitList, (P a, U b, P c, P d), (a, b, c, d))                                            \
    CODE(clEnqueueSVMFree, (P a, U b, P c, P d, P e, U f, P g, P h), (a, b, c, d, e, f, g, h))                        \
    CODE(clEnqueueSVMMemcpy, (P a, U b, P c, P d, Z e, U f, P g, P h), (a, b, c, d, e, f, g, h))                      \
    CODE(clEnqueueSVMMemFill, (P a, P b, P c, Z d, Z e, U f, P g, P h), (a, b, c, d, e, f, g, h))                     \
    CODE(clEnqueueSVMMap, (P a, U b, W c, P d, Z e, U f, P g, P h), (a, b, c, d, e, f, g, h))                         \
    CODE(clEnqueueSVMUnmap, (P a, P b, U c, P d, P e), (a, b, c, d, e))                                               \
    CODE(clEnqueueSVMMigrateMem, (P a, U b, P c, P d, W e, U f, P g, P h), (a, b, c, d, e, f, g, h))                  \
    CODE(clEnqueueBarrier, (P a), (a))                                                                                \
    GIVE(clGetExtensionFunctionAddress, (P a), (a))                                                                   \
    GIVE(clGetExtensionFunctionAddressForPlatform, (P a, P b), (a, b))                                                \
    MAKE(clCreateFromGLBuffer, (P a, W b, U c, I *error), (a, b, c, error))                                           \
    MAKE(clCreateFromGLTexture, (P a, W b, U c, I d, U e, I *error), (a, b, c, d, e, error))                          \
    CODE(clGetGLObjectInfo, (P a, P b, P c), (a, b, c))                                                               \
    CODE(clGetGLTextureInfo, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                              \
    MAKE(clCreateFromGLRenderbuffer, (P a, W b, U c, I *error), (a, b, c, error))                                     \
    CODE(clEnqueueAcquireGLObjects, (P a, U b, P c, U d, P e, P f), (a, b, c, d, e, f))                               \
    CODE(clEnqueueReleaseGLObjects, (P a, U b, P c, U d, P e, P f), (a, b, c, d, e, f))                               \
    CODE(clGetGLContextInfoKHR, (P a, U b, Z c, P d, P e), (a, b, c, d, e))                                           \
    MAKE(clCreateFromGLTexture2D, (P a, W b, U c, I d, U e, I *error), (a, b, c, d, e, error))                        \
    MAKE(clCreateFromGLTexture3D, (P a, W b, U c, I d, U e, I *error), (a, b, c, d, e, error))

#endif
