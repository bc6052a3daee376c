"""Attacks with processes, signals and the kernel's machinery."""

# ruff: noqa: E501  # attacks are short programs in strings

from __future__ import annotations

from tests.isolation.abuse import attack

PROCESSES = [
    attack("fork bomb", """
        def attack(t):
            for _ in range(5):
                if os.fork() == 0:
                    time.sleep(2)
                    os._exit(0)
            time.sleep(0.1)
    """),
    attack("shell", "def attack(t): os.system('touch ' + t['folder'] + '/abuse_shell')"),
    attack("subprocess", "def attack(t):\n    import subprocess\n    subprocess.run(['touch', t['folder'] + '/abuse_sub'])"),
    attack("posix_spawn", "def attack(t):\n    os.posix_spawn('/usr/bin/touch', ['touch', t['folder'] + '/abuse_spawn'], {})\n    time.sleep(0.1)"),
    attack("exec", "def attack(t): os.execv('/usr/bin/touch', ['touch', t['folder'] + '/abuse_exec'])"),
    attack("multiprocessing", """
        def attack(t):
            import multiprocessing
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(2,))
            child.start()
            time.sleep(0.1)
    """),
    attack("clone by number", """
        def attack(t):
            if ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) == 0:
                time.sleep(2)
                os._exit(0)
            time.sleep(0.1)
    """),
    attack("clone3 by number", """
        def attack(t):
            arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17, 0, 0, 0)
            if ctypes.CDLL(None).syscall(435, arguments, 64) == 0:
                time.sleep(2)
                os._exit(0)
            time.sleep(0.1)
    """),
    attack("thread", """
        def attack(t):
            import threading
            threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
            time.sleep(0.1)
            return SUCCEEDED
    """),
    attack("thread pool", "def attack(t):\n    from concurrent.futures import ThreadPoolExecutor\n"
           "    return SUCCEEDED if ThreadPoolExecutor(2).submit(int, '1').result(0.3) else ''"),
    attack("asyncio thread", "import asyncio\nasync def attack(t): return SUCCEEDED if await asyncio.to_thread(int, '1') else ''"),
    attack("daemon", """
        def attack(t):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(2)
                os._exit(0)
            time.sleep(0.1)
    """),
]  # fmt: skip

SIGNALS = [
    attack("kill", "def attack(t): os.kill(t['gateway'], signal.SIGUSR1)"),
    attack("kill the group", "def attack(t): os.killpg(t['group'], signal.SIGUSR1)"),
    attack("kill everybody", "def attack(t): os.kill(-1, signal.SIGUSR1)", only_isolated=True),
    attack("kill the parent", "def attack(t): os.kill(os.getppid(), signal.SIGKILL)", only_isolated=True),
    attack("pidfd_send_signal", "def attack(t): signal.pidfd_send_signal(os.pidfd_open(t['gateway']), signal.SIGUSR1)"),
    attack("tgkill", "def attack(t): ctypes.CDLL(None).syscall(234, t['gateway'], t['gateway'], 10)"),
    attack("sigqueue", "def attack(t): ctypes.CDLL(None).sigqueue(t['gateway'], 10, 0)"),
    attack("owner of a descriptor", """
        def attack(t):
            import fcntl
            handle = 0 if t["isolated"] else socket.socketpair()[0].fileno()
            fcntl.fcntl(handle, 8, t["gateway"])
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | 0o20000)
            return SUCCEEDED
    """),
    attack("ptrace", "def attack(t): return SUCCEEDED if ctypes.CDLL(None).ptrace(16, t['other'], 0, 0) == 0 else 'no'"),
    attack("ptrace me", "def attack(t): return SUCCEEDED if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else 'no'"),
    attack("limits of the gateway", "import resource\ndef attack(t):\n"
           "    resource.prlimit(t['gateway'], resource.RLIMIT_NOFILE, (600, 600))\n    return SUCCEEDED"),
    attack("niceness of the gateway", "def attack(t):\n    os.setpriority(os.PRIO_PROCESS, t['gateway'], 5)\n    return SUCCEEDED"),
    attack("affinity of the gateway", "def attack(t):\n    os.sched_setaffinity(t['gateway'], {0})\n    return SUCCEEDED"),
    attack("ignore signals", "def attack(t):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    return SUCCEEDED"),
    attack("alarm", "def attack(t):\n    signal.setitimer(signal.ITIMER_REAL, 100)\n    return SUCCEEDED"),
]  # fmt: skip


def _call(name: str, call: str, *, only_isolated: bool = False):  # type: ignore[no-untyped-def]  # a shorthand of this file
    return attack(
        name, f"def attack(t): return SUCCEEDED if ctypes.CDLL(None).syscall({call}) >= 0 else 'no'", only_isolated=only_isolated
    )


KERNEL = [
    _call("io_uring", "425, 8, (ctypes.c_uint32 * 30)()"),
    _call("bpf", "321, 0, (ctypes.c_uint32 * 30)(1, 4, 4, 1), 72"),
    _call("userfaultfd", "323, 1"),
    _call("memfd", "319, b'abuse', 0"),
    _call("memfd_secret", "447, 0"),
    _call("inotify", "294, 0"),
    _call("fanotify", "300, 0, 0"),
    _call("eventfd", "290, 0, 0"),
    _call("timerfd", "283, 1, 0"),
    _call("epoll", "291, 0"),
    _call("pipe", "293, (ctypes.c_int * 2)(), 0"),
    _call("duplicate a descriptor", "32, 0"),
    _call("shared memory of System V", "29, 0, 4096, 0o1600"),
    _call("message queue", "240, b'abuse', 0o102, 0o600, 0"),
    _call("key ring", "250, 0, -3, 1"),
    _call("perf_event_open", "298, (ctypes.c_uint64 * 16)(0x8000000001, 0), 0, -1, -1, 0"),
    _call("user namespace", "272, 0x10000000", only_isolated=True),
    _call("mount namespace", "272, 0x20000", only_isolated=True),
    _call("setns", "308, 0, 0", only_isolated=True),
    _call("mount", "165, b'x', b'/tmp', b'tmpfs', 0, 0", only_isolated=True),
    _call("chroot", "161, b'/'", only_isolated=True),
    _call("host name", "170, b'abuse', 5", only_isolated=True),
    _call("become root", "105, 0", only_isolated=True),
    _call("personality", "135, 0x0040000"),
    _call("x32", "0x40000000 + 39"),
    _call("be dumpable again", "157, 4, 1, 0, 0, 0", only_isolated=True),
    _call("another filter", "317, 1, 0, 0", only_isolated=True),
    _call("landlock again", "444, 0, 0, 1"),
    _call("new session", "112", only_isolated=True),
    _call("parent's death is no matter", "157, 1, 0, 0, 0, 0", only_isolated=True),
    attack("executable memory", "import mmap\ndef attack(t):\n    mmap.mmap(-1, 4096, prot=7)\n    return SUCCEEDED"),
    attack("memory made executable", """
        import mmap
        def attack(t):
            room = mmap.mmap(-1, 4096)
            address = ctypes.addressof(ctypes.c_char.from_buffer(room))
            return SUCCEEDED if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, 5) == 0 else "no"
    """),
    attack("machine code", """
        import mmap
        def attack(t):
            room = mmap.mmap(-1, 4096, prot=7)
            room.write(b"\\xb8\\x2a\\x00\\x00\\x00\\xc3")
            address = ctypes.addressof(ctypes.c_char.from_buffer(room))
            return SUCCEEDED if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 42 else "no"
    """),
    attack("raise a limit", "import resource\ndef attack(t):\n    now = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
           "    resource.setrlimit(resource.RLIMIT_NOFILE, (now, now + (1 if t['isolated'] else 0)))\n    return SUCCEEDED"),
    attack("niceness", "def attack(t): os.nice(1 if not t['isolated'] else -1); return SUCCEEDED"),
    attack("real time scheduling", "def attack(t):\n    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n    return SUCCEEDED",
           only_isolated=True),
    attack("locked memory", "def attack(t): return SUCCEEDED if ctypes.CDLL(None).mlockall(1) == 0 else 'no'"),
]  # fmt: skip
