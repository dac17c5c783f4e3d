#!/usr/bin/env python3
"""Runs a command in which io_uring is forbidden, as containers do: with a seccomp filter.

    tests/deny_uring.py setup|enter ERRNO COMMAND...

The named system call, io_uring_setup or io_uring_enter, fails with ERRNO (EPERM, ENOSYS); all
others work.
"""
import ctypes
import errno
import os
import struct
import sys

CALLS = {"setup": 425, "enter": 426}  # the same on every architecture
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


def instruction(code, if_true, if_false, value):
    return struct.pack("=HBBI", code, if_true, if_false, value)


def main():
    call, error = CALLS[sys.argv[1]], getattr(errno, sys.argv[2])
    program = (
        instruction(LOAD_WORD, 0, 0, 0)  # the number of the system call
        + instruction(JUMP_IF_EQUAL, 0, 1, call)
        + instruction(RETURN, 0, 0, RET_ERRNO | error)
        + instruction(RETURN, 0, 0, RET_ALLOW)
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and where they are.
    filters = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters):
        sys.exit("deny_uring.py: no filter: " + os.strerror(ctypes.get_errno()))
    os.execvp(sys.argv[3], sys.argv[3:])


main()
