"""A WebAssembly guest by Wasmtime, inside the engine's process; compiled half confined, run when all is locked down.

The guest's machine code needs executable memory, which only the last step of the confinement refuses; nothing of the guest runs
before that.
"""

from __future__ import annotations

import json
from typing import Any

import wasmtime

_STACK_BYTES = 512 << 10
_PAGE = 65_536
_WASI = "wasi_snapshot_preview1"
#: Of WASI's errors: no such descriptor, a wrong argument; and the pieces that are written at once at most.
_BADF, _INVAL, _MAX_PIECES = 8, 28, 1024


class Engine:
    """One module; every request gets a fresh instance of it, so nothing is carried from one to the next."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._fuel = setup["fuel"]
        self._guest_bytes = setup["guest_bytes"]
        self._reply_bytes = setup["reply_bytes"]
        config = wasmtime.Config()
        config.consume_fuel = True
        config.max_wasm_stack = _STACK_BYTES
        config.memory_reservation = self._guest_bytes
        config.memory_guard_size = _PAGE
        config.memory_reservation_for_growth = _PAGE
        config.memory_init_cow = False  # it would need memory that is a file
        config.parallel_compilation = False
        config.wasm_threads = False
        self._engine = wasmtime.Engine(config)
        self._text = setup["text"]
        self._linker = wasmtime.Linker(self._engine)
        self._wasi = setup["wasi"]
        if self._wasi:
            self._linker.define_wasi()
            # Wasmtime's own one writes in a thread, which cannot be started in here: the guest would wait for ever.
            self._linker.allow_shadowing = True
            self._linker.define_func(_WASI, "fd_write", _writing(), _take, access_caller=True)
        self._trap: wasmtime.Module | None = None
        self._module: Any = None
        self._warm_up()

    def compile(self, body: bytes) -> None:
        """Compile the guest and see whether it is one."""
        self._module = wasmtime.Module(self._engine, body.decode() if self._text else body)
        self._check()

    def _check(self) -> None:
        offered = {each.name: each.type for each in self._module.exports}
        for name, kind in (("memory", wasmtime.MemoryType), ("alloc", wasmtime.FuncType), ("evaluate", wasmtime.FuncType)):
            if not isinstance(offered.get(name), kind):
                raise ValueError(f"the module exports no {'memory' if name == 'memory' else 'function'} {name!r}")
        for each in self._module.imports:
            if not (self._wasi and each.module == _WASI):
                raise ValueError(f"the module imports {each.module}.{each.name}: it gets nothing of the host")

    def _warm_up(self) -> None:
        # Signal handlers and stacks are set up at the first trap.
        if self._trap is None:
            self._trap = wasmtime.Module(self._engine, '(module (memory 1) (func (export "f") unreachable))')
        store = self._store()
        function = wasmtime.Instance(store, self._trap, []).exports(store)["f"]
        try:
            function(store)  # type: ignore[operator]  # an export of our own
        except wasmtime.Trap:
            return

    def build(self) -> None:
        """See that what every request does can be done under the lockdown too."""
        self._warm_up()

    def evaluate(self, data: bytes) -> dict[str, Any]:
        store = self._store()
        instance: Any = self._linker.instantiate(store, self._module).exports(store)
        memory = instance["memory"]
        if "_initialize" in instance:
            instance["_initialize"](store)
        at = instance["alloc"](store, len(data)) & 0xFFFFFFFF
        if at + len(data) > memory.data_len(store):
            return {"error": "alloc() gave a place outside of the memory"}
        memory.write(store, data, at)
        answer = instance["evaluate"](store, at, len(data)) & 0xFFFFFFFFFFFFFFFF
        start, size = answer >> 32, answer & 0xFFFFFFFF
        if size == 0:
            return {"undefined": True}
        if start + size > memory.data_len(store):
            return {"error": f"the reply of {size:,} bytes is not in the memory"}
        if size > self._reply_bytes:
            # It may be a denial that repeats what the caller wrote: that is not to become a pass by `on_error`.
            return {"result": {"allow": False, "reason": f"the guest's answer of {size:,} bytes is too long"}}
        return {"result": json.loads(bytes(memory.read(store, start, start + size)))}

    def _store(self) -> wasmtime.Store:
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=self._guest_bytes, table_elements=10_000, instances=1, tables=4, memories=1)
        store.set_fuel(self._fuel)
        if self._wasi:
            # No files, no arguments, no environment, no output: clocks and random numbers are what is left.
            store.set_wasi(wasmtime.WasiConfig())
        return store


def _writing() -> wasmtime.FuncType:
    number = wasmtime.ValType.i32()
    return wasmtime.FuncType([number] * 4, [number])


def _take(caller: wasmtime.Caller, descriptor: int, pieces: int, count: int, told: int) -> int:
    """Take what the guest writes to its output, and drop it: tell how many bytes the pieces have."""
    memory: Any = caller["memory"]
    pieces, count, told = pieces & 0xFFFFFFFF, count & 0xFFFFFFFF, told & 0xFFFFFFFF
    if descriptor not in (1, 2):
        return _BADF
    if count > _MAX_PIECES or max(pieces + 8 * count, told + 4) > memory.data_len(caller):
        return _INVAL
    table = memory.read(caller, pieces, pieces + 8 * count)
    written = sum(int.from_bytes(table[at + 4 : at + 8], "little") for at in range(0, 8 * count, 8))
    memory.write(caller, (written & 0xFFFFFFFF).to_bytes(4, "little"), told)
    return 0
