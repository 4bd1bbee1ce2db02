"""Recognize an error that means: the memory of the GPU or of the machine is full."""

from __future__ import annotations

import errno

from azllm_lightning.cli.messages import tr

SIGNS = (
    "out of memory",  # CUDA, ROCm, MPS, NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS had no memory for its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cudaErrorMemoryAllocation",
    "DefaultCPUAllocator",  # "can't allocate memory", and "not enough memory" on Windows
    "bad_alloc",
    "Storage size calculation overflowed",  # more than any machine has
)
"""What libraries write into a RuntimeError if there is no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` was raised because memory ran out.

    torch has a class for it, but cuBLAS, cuDNN and the CPU's allocator raise a RuntimeError.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def out_of_memory_message(error: BaseException) -> str:
    """What to do about `error`, for commands other than `train`."""
    lines = str(error).splitlines() or [type(error).__name__]
    return tr(
        "out of memory: close other programs, or process less at once, with a smaller model, "
        "fewer samples or a shorter block_size ({reason})",
        reason=lines[0],
    )
