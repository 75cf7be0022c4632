"""The filter of system calls around a process, as the kernel has it, and put around another one.

Source: ptrace(2), PTRACE_SECCOMP_GET_FILTER; seccomp(2).
"""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_ATTACH, _DETACH, _GET_FILTER = 16, 17, 0x420C
_BYTES = 8  # an instruction's


def read_filter(pid: int) -> bytes:
    """The instructions of the filter that was put around process `pid` last; as root alone."""
    _trace(_ATTACH, pid, None, None)
    try:
        os.waitpid(pid, 0)
        count = _trace(_GET_FILTER, pid, None, None)
        instructions = ctypes.create_string_buffer(count * _BYTES)
        _trace(_GET_FILTER, pid, None, ctypes.addressof(instructions))
    finally:
        _trace(_DETACH, pid, None, None)
    return instructions.raw


def _trace(request: int, pid: int, address: int | None, data: int | None) -> int:
    result = int(_libc.ptrace(request, pid, address, data))
    if result < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return result
