"""A filter of system calls for untrusted programs, as classic BPF (seccomp(2)). It needs no_new_privs.

Namespaces and missing capabilities already refuse most of what is listed here. The filter is a second wall before the
parts of the kernel that contest programs never need and that have most holes: new user namespaces, mounts, tracing,
io_uring, bpf, keys (which no namespace separates), and sockets of other families than AF_UNIX (the network namespace
does not cover vsock). It also refuses memory that no limit counts. Everything else is let through: the rest of the
kernel is as exposed as it is to the caller."""

import ctypes
import errno
import os
import struct
import sys

from tasks.programs.sandbox_namespaces import check, libc

__all__ = ["MACHINES", "filter_system_calls"]

_REFUSED = {
    "x86_64": {
        *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
        *(155, 165, 166, 272, 308),  # pivot_root, mount, umount2, unshare, setns
        *(103, 135, 154, 163, 167, 168, 169, 179),  # syslog, personality, modify_ldt, acct, swapon, swapoff, reboot, quotactl
        *(175, 176, 313, 246, 320),  # init_module, delete_module, finit_module, kexec_load, kexec_file_load
        *(248, 249, 250),  # add_key, request_key, keyctl
        *(278, 298, 304, 321, 323),  # vmsplice, perf_event_open, open_by_handle_at, bpf, userfaultfd
        *(29, 68, 319),  # shmget, msgget, memfd_create
    },
    "aarch64": {
        *(117, 270, 271, 272),  # in the same order; only x86 has modify_ldt
        *(41, 40, 39, 97, 268),
        *(116, 92, 89, 224, 225, 142, 60),
        *(105, 106, 273, 104, 294),
        *(217, 218, 219),
        *(75, 241, 265, 280, 282),
        *(194, 186, 279),
    },
}
_REFUSED_EVERYWHERE = {
    *(425, 426, 427),  # io_uring_setup, io_uring_enter, io_uring_register
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    *(438, 447),  # pidfd_getfd, memfd_secret
}
_CLONE, _SOCKET, _CLONE3 = {"x86_64": 56, "aarch64": 220}, {"x86_64": 41, "aarch64": 198}, 435
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # x86_64 numbers from here on belong to another table
MACHINES = tuple(_REFUSED)

_AF_UNIX = 1
_CLONE_NEW_ANYTHING = 0x7E020000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x15, 0x35, 0x45
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def filter_system_calls() -> None:
    """Put the caller and all its children behind the filter for good. Raises OSError if the kernel refuses."""
    code = _program(os.uname().machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    wanted = ctypes.create_string_buffer(struct.pack("HL", len(code) // 8, ctypes.addressof(buffer)))
    check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, wanted, 0, 0), "prctl(PR_SET_SECCOMP)")


def _program(machine: str) -> bytes:
    assert sys.byteorder == "little"
    steps = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_IF_EQUAL, _ARCHITECTURE[machine], then=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        *_refuse_if(_IF_AT_LEAST, _X32, errno.ENOSYS),
        *_refuse_if(_IF_EQUAL, _CLONE3, errno.ENOSYS),  # a filter cannot see its flags in memory; glibc then calls clone
        *(step for number in sorted(_REFUSED[machine] | _REFUSED_EVERYWHERE) for step in _refuse_if(_IF_EQUAL, number, errno.EPERM)),
        _step(_IF_EQUAL, _CLONE[machine], otherwise=4),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        *_refuse_if(_IF_ANY_BIT, _CLONE_NEW_ANYTHING, errno.EPERM),
        _step(_RETURN, _ALLOW),
        _step(_IF_EQUAL, _SOCKET[machine], otherwise=3),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_IF_EQUAL, _AF_UNIX, then=1),
        _step(_RETURN, _errno(errno.EAFNOSUPPORT)),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _refuse_if(test: int, value: int, number: int) -> list[bytes]:
    return [_step(test, value, otherwise=1), _step(_RETURN, _errno(number))]


def _errno(number: int) -> int:
    return 0x00050000 | number


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """Return one instruction. The jumps count the instructions to skip."""
    return struct.pack("<HBBI", code, then, otherwise, value)
