"""Run a command on a lesser system: some system calls fail as they do in a container or on an old kernel.

`python -m tests.isolation.lesser 272=1,444=38 command …`: call number = errno, or number/first argument = errno.
"""

from __future__ import annotations

import ctypes
import os
import sys

from sark_mw.policy.isolated.inside import kernel, seccomp

#: What Docker's default profile refuses to whoever lacks CAP_SYS_ADMIN, and kernels that are older or built without.
NO_NAMESPACES = "272=1,165=1,155=1,166=1"
NO_LANDLOCK = "444=38"
NO_SECCOMP = "157/22=22"
NO_PIDFD = "434=38"
NO_RLIMITS = "160=1,302=1"


def lessen(words: str) -> None:
    """Put a filter on this process that refuses the calls named."""
    lines = [(0x20, 0, 0, 0)]
    for word in words.split(","):
        call, _, number = word.partition("=")
        call, _, first = call.partition("/")
        verdict = (0x06, 0, 0, 0x00050000 | int(number))
        if first:
            lines += [(0x15, 0, 4, int(call)), (0x20, 0, 0, 16), (0x15, 0, 1, int(first)), verdict, (0x20, 0, 0, 0)]
        else:
            lines += [(0x15, 0, 1, int(call)), verdict]
    lines.append((0x06, 0, 0, 0x7FFF0000))
    program = seccomp._Program(len(lines), (seccomp._Line * len(lines))(*(seccomp._Line(*line) for line in lines)))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(program))


if __name__ == "__main__":
    lessen(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
