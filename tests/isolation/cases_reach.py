"""Attacks on what lies outside: files, memory, descriptors, sockets."""

# ruff: noqa: E501  # attacks are short programs in strings

from __future__ import annotations

from tests.isolation.abuse import attack

FILES = [
    attack("open", "def attack(t): return open(t['secret']).read()"),
    attack("os.open", "def attack(t): return os.read(os.open(t['secret'], os.O_RDONLY), 4096)"),
    attack("FileIO", "import io\ndef attack(t): return io.FileIO(t['secret']).readall()"),
    attack("loader get_data", "from importlib.machinery import SourceFileLoader\n"
           "def attack(t): return SourceFileLoader('x', t['secret']).get_data(t['secret'])"),
    attack("loader of builtins", "def attack(t): return sys.modules['os'].__spec__.loader.get_data(t['secret']) "
           "if hasattr(sys.modules['os'].__spec__.loader, 'get_data') else abc_loader(t)\n"
           "def abc_loader(t):\n    import json\n    return json.__loader__.get_data(t['secret'])"),
    attack("subclasses walk", """
        def attack(t):
            for kind in object.__subclasses__():
                space = getattr(getattr(kind, "__init__", None), "__globals__", {})
                if "popen" in space:
                    return space["popen"]("cat " + t["secret"]).read()
                if "sys" in space and hasattr(space["sys"], "modules"):
                    return space["sys"].modules["os"].popen("cat " + t["secret"]).read()
    """),
    attack("subclasses walk to open", """
        def attack(t):
            for kind in ().__class__.__base__.__subclasses__():
                if kind.__name__ == "FileLoader":
                    return kind("x", t["secret"]).get_data(t["secret"])
    """),
    attack("linecache", "import linecache\ndef attack(t): return linecache.getlines(t['secret'])"),
    attack("codecs.open", "import codecs\ndef attack(t): return codecs.open(t['secret']).read()"),
    attack("pathlib", "def attack(t):\n    import pathlib\n    return pathlib.Path(t['secret']).read_text()"),
    attack("mmap of a file", """
        def attack(t):
            import mmap
            handle = os.open(t["secret"], os.O_RDONLY)
            return mmap.mmap(handle, 0, prot=mmap.PROT_READ)[:]
    """),
    attack("libc open", """
        def attack(t):
            libc = ctypes.CDLL(None)
            room = ctypes.create_string_buffer(4096)
            handle = libc.open(t["secret"].encode(), 0)
            libc.read(handle, room, 4096)
            return room.value
    """),
    attack("openat2 by number", """
        def attack(t):
            libc = ctypes.CDLL(None)
            how = (ctypes.c_uint64 * 3)(0, 0, 0)
            handle = libc.syscall(437, -100, t["secret"].encode(), how, 24)
            return os.read(handle, 4096) if handle >= 0 else "no"
    """),
    attack("execfile by compile", "def attack(t): exec(compile(open(t['secret']).read(), 'x', 'exec'))"),
    attack("syntax error shows a line", """
        def attack(t):
            import traceback
            try:
                raise SyntaxError("x", (t["secret"], 1, 1, None))
            except SyntaxError as error:
                return "".join(traceback.format_exception(error)) + repr(__import__("linecache").getline(t["secret"], 1))
    """),
    attack("import path injection", """
        def attack(t):
            sys.path.insert(0, t["folder"])
            import abuse_module
            return abuse_module.TOKEN
    """),
    attack("chdir and open", "def attack(t):\n    os.chdir(t['folder'])\n    return open('secret.txt').read()"),
    attack("list a folder", "def attack(t): return [SUCCEEDED for name in os.listdir(t['folder']) if 'secret' in name]"),
    attack("stat a file", "def attack(t): return SUCCEEDED if os.stat(t['secret']).st_size else ''"),
    attack("write a file", "def attack(t): open(t['folder'] + '/abuse_1', 'w').write('x')"),
    attack("make a folder", "def attack(t): os.mkdir(t['folder'] + '/abuse_2')"),
    attack("hard link", "def attack(t): os.link(t['secret'], t['folder'] + '/abuse_3')"),
    attack("symbolic link", "def attack(t): os.symlink(t['secret'], t['folder'] + '/abuse_4')"),
    attack("remove a file", "def attack(t): os.unlink(t['folder'] + '/victim')"),
    attack("rename a file", "def attack(t): os.rename(t['folder'] + '/victim', t['folder'] + '/abuse_5')"),
    attack("truncate a file", "def attack(t): os.truncate(t['folder'] + '/victim', 0)"),
    attack("fifo", "def attack(t): os.mkfifo(t['folder'] + '/abuse_6')"),
    attack("shared memory folder", "def attack(t): open('/dev/shm/abuse_' + str(t['gateway']), 'w').write('x')"),
    attack("temporary file", "def attack(t):\n    import tempfile\n    open(tempfile.mkdtemp(prefix='abuse_', dir=t['folder']) + '/x', 'w')"),
]

MEMORY = [
    attack("environment", "def attack(t): return dict(os.environ)"),
    attack("environment through libc", "def attack(t):\n    libc = ctypes.CDLL(None)\n    libc.getenv.restype = ctypes.c_char_p\n"
           "    return libc.getenv(b'SARK_SECRET_TOKEN')"),
    attack("own environ file", "def attack(t): return open('/proc/self/environ').read()"),
    attack("gateway's environ file", "def attack(t): return open('/proc/%d/environ' % t['gateway']).read()"),
    attack("gateway's arguments", "def attack(t): return open('/proc/%d/cmdline' % t['gateway']).read() and SUCCEEDED"),
    attack("gateway's memory file", """
        def attack(t):
            found = []
            with open("/proc/%d/maps" % t["gateway"]) as maps, open("/proc/%d/mem" % t["gateway"], "rb", 0) as memory:
                for line in maps:
                    if "rw-p" not in line or "[v" in line:
                        continue
                    start, end = (int(each, 16) for each in line.split()[0].split("-"))
                    memory.seek(start)
                    content = memory.read(min(end - start, 64 << 20))
                    at = content.find(b"tok" + b"en-")
                    if at >= 0:
                        found.append(content[at : at + 60])
            return found
    """),
    attack("own memory file", "def attack(t): return open('/proc/self/mem', 'rb').read and SUCCEEDED"),
    attack("objects of the collector", """
        def attack(t):
            head = "tok" + "en-"
            for each in gc.get_objects():
                if isinstance(each, dict):
                    for value in list(each.values()):
                        if isinstance(value, str) and value.startswith(head):
                            return value
    """),
    attack("own heap through pointers", """
        import mmap
        def attack(t):
            head = b"tok" + b"en-"
            here = id(object()) & ~0xFFFFF
            content = ctypes.string_at(here, 1 << 20)
            at = content.find(head)
            return content[at : at + 60] if at >= 0 else "none"
    """),
    attack("frames of the caller", """
        def attack(t):
            frame, seen = sys._getframe(), []
            while frame:
                seen += [repr(value) for value in frame.f_locals.values()] + [repr(frame.f_globals.get("TOKEN"))]
                frame = frame.f_back
            return [each for each in seen if "tok" + "en-" in each]
    """),
    attack("modules of the caller", """
        def attack(t):
            for module in list(sys.modules.values()):
                for value in list(getattr(module, "__dict__", {}).values()):
                    if isinstance(value, str) and value.startswith("tok" + "en-"):
                        return value
    """),
    attack("inherited descriptors", """
        def attack(t):
            found = []
            for handle in range(64):
                if handle == 0 and t["isolated"]:
                    continue
                try:
                    found.append(os.pread(handle, 4096, 0))
                except OSError:
                    pass
            return found
    """),
    attack("gateway's descriptors by proc", "def attack(t): return open('/proc/%d/fd/%d' % (t['gateway'], t['handle'])).read()"),
    attack("gateway's descriptor by pidfd_getfd", """
        def attack(t):
            libc = ctypes.CDLL(None)
            pidfd = libc.syscall(434, t["gateway"], 0)
            return os.pread(libc.syscall(438, pidfd, t["handle"], 0), 4096, 0)
    """),
    attack("process_vm_readv", """
        class Vector(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        def attack(t):
            room = ctypes.create_string_buffer(4096)
            here, there = Vector(ctypes.addressof(room), 60), Vector(t["address"], 60)
            ctypes.CDLL(None).process_vm_readv(t["gateway"], ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
            return room.raw
    """),
    attack("internals of the gateway", """
        def attack(t):
            import sark_mw.policy.manager, sark_mw.store.base, sark_mw.settings
            return SUCCEEDED
    """),
    attack("internals by reloading", """
        def attack(t):
            import importlib
            sys.modules["sark_mw"].__path__ = [t["package"]]
            return SUCCEEDED if importlib.import_module("sark_mw.enforcer") else ""
    """),
]

NETWORK = [
    attack("connect", "def attack(t): socket.create_connection(('127.0.0.1', t['tcp'])).send(b'x')"),
    attack("datagram", "def attack(t): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', t['udp']))"),
    attack("unix socket", "def attack(t):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect(t['unix'])"),
    attack("abstract socket", "def attack(t):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0' + t['abstract'])"),
    attack("sendto on the own socket", "def attack(t):\n    s = socket.socket(fileno=0) if t['isolated'] else socket.socket(2, 2)\n"
           "    s.sendto(b'x', '\\0' + t['abstract'] if t['isolated'] else ('127.0.0.1', t['udp']))"),
    attack("netlink", "def attack(t): return SUCCEEDED if socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) else ''"),
    attack("vsock or bluetooth", "def attack(t): return SUCCEEDED if socket.socket(40, socket.SOCK_STREAM) else ''"),
    attack("algorithm socket", "def attack(t): return SUCCEEDED if socket.socket(38, socket.SOCK_SEQPACKET, 0) else ''"),
    attack("pair of sockets", "def attack(t): return SUCCEEDED if socket.socketpair() else ''"),
    attack("urllib", "def attack(t):\n    import urllib.request\n    urllib.request.urlopen('http://127.0.0.1:%d' % t['tcp'], timeout=0.2)"),
    attack("asyncio connection", "import asyncio\nasync def attack(t):\n    await asyncio.open_connection('127.0.0.1', t['tcp'])"),
    attack("listen", "def attack(t):\n    s = socket.socket()\n    s.bind(('127.0.0.1', 0))\n    s.listen()\n    return SUCCEEDED"),
    attack("socket by number", "def attack(t): return SUCCEEDED if ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0 else 'no'"),
]  # fmt: skip
