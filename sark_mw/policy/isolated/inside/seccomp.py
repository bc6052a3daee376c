"""The system calls a worker may make: the measured minimum of CPython, as a BPF program assembled here.

What is not on the list fails with EPERM: an import of a module that is not there or a `socket()` in an honest plugin becomes an
exception, and the request is answered. What has no use but an attack kills the process, as do a foreign architecture and x32.
"""

from __future__ import annotations

import ctypes
import errno

from sark_mw.policy.isolated.inside.kernel import MACHINE, PR_SET_SECCOMP, prctl

_LOAD, _EQUAL, _GREATER_OR_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_KILL_PROCESS, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_MODE_FILTER = 2
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
_X32_BIT = 0x40000000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: name: (number on x86_64, number on aarch64); None where it does not exist.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "restart_syscall": (219, 128),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "sched_yield": (24, 124),
    "rt_sigreturn": (15, 139),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
#: Allowed if argument number …, masked, is one of these: no executable memory, of futexes only wait and wake.
_PROT_EXEC = 0x4
_FUTEX_COMMAND = 0x7F
_CHECKED: dict[str, tuple[tuple[int | None, int | None], int, int, tuple[int, ...]]] = {
    "mmap": ((9, 222), 2, _PROT_EXEC, (0,)),
    "mprotect": ((10, 226), 2, _PROT_EXEC, (0,)),
    "futex": ((202, 98), 1, _FUTEX_COMMAND, (0, 1, 9, 10)),
}
_DEADLY: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "pidfd_getfd": (438, 438),
    "execve": (59, 221),
    "execveat": (322, 281),
    "seccomp": (317, 277),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "reboot": (169, 142),
}

Instruction = tuple[int, int, int, int]


def program(machine: str) -> list[Instruction]:
    """Assemble the filter for a machine as (code, jump if true, jump if false, operand); raises `KeyError` for an unknown one."""
    column = ("x86_64", "aarch64").index(machine) if machine in _ARCHITECTURES else -1
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_GREATER_OR_EQUAL, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    for verdict, calls in ((_ALLOW, _ALLOWED), (_KILL_PROCESS, _DEADLY)):
        for numbers in calls.values():
            number = numbers[column]
            if number is not None:
                lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, verdict)]
    for numbers, argument, mask, values in _CHECKED.values():
        number = numbers[column]
        if number is not None:
            lines += _checked(number, argument, mask, values)
    lines.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return lines


def _checked(number: int, argument: int, mask: int, values: tuple[int, ...]) -> list[Instruction]:
    lines = [(_LOAD, 0, 0, _AT_ARGUMENTS + 8 * argument), (_AND, 0, 0, mask)]
    for value in values:
        lines += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    lines.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return [(_EQUAL, 0, len(lines), number), *lines]


class _Line(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("true", ctypes.c_uint8), ("false", ctypes.c_uint8), ("operand", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("lines", ctypes.POINTER(_Line)))


def assembled() -> object:
    """Lay the filter of this machine out in memory, once, for `enter`."""
    lines = program(MACHINE)
    return _Program(len(lines), (_Line * len(lines))(*(_Line(*line) for line in lines)))


def enter(filter_program: object) -> None:
    """Confine this process to the list; there is no way back. Needs no_new_privs."""
    assert isinstance(filter_program, _Program)
    prctl(PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(filter_program))
