"""Machine code for plain loops: compiled once on each machine by numba, kept in a folder, and loaded from there without numba.

Importing numba and waking its compiler takes half a second, which every process would pay; loading what it made takes a hundredth of
that. Knows nothing of what the loops compute.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

logger = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Assembly:
    """A function in LLVM's assembly language that the functions of a module may call: of `num_arguments` int64, without a result."""

    name: str
    num_arguments: int
    source: str


def load(module: ModuleType, name: str, example: tuple[Any, ...], *, fused: bool = False) -> Loop:
    """Return the function `name` of `module` as machine code for arguments of the types in `example`.

    The functions of the module may use numbers, C-contiguous arrays, named tuples of these, one another and Assembly, but no Python
    objects. This one returns an int. The machine code checks no index. fused: a product and a sum may be one instruction, rounded once.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    file_name = f"{module.__name__}.{name}-{_fingerprint(module, (fused, *example))}.o"
    with _ONE_AT_A_TIME:  # threads that want the same wait for the first of them
        for folder in _folders():
            if code := _read(folder / file_name):
                return Loop(code, example)
        logger.warning("compiling %s.%s for this machine; this happens once and takes a few seconds", module.__name__, name)
        code = _compile(module, name, example, fused)
        _keep(code, file_name)
    return Loop(code, example)


def _compile(module: ModuleType, name: str, example: tuple[Any, ...], fused: bool) -> bytes:
    """Return the function's symbol, a line break, and its object code."""
    import numba

    options: dict[str, Any] = {
        "error_model": "numpy",
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
        "_nrt": False,
        "fastmath": {"contract"} if fused else False,
    }
    namespace = dict(vars(module))
    for key, value in vars(module).items():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            function = FunctionType(value.__code__, namespace, key)
            namespace[key] = numba.njit(**options)(function)
        elif isinstance(value, Assembly):
            namespace[key] = numba.types.ExternalFunction(value.name, numba.types.void(*[numba.types.int64] * value.num_arguments))
    for assembly in _assemblies(module):
        llvm.add_symbol(assembly.name, 1)  # numba loads what it compiles and wants to know an address; it is not called
    compiled = namespace[name]
    signature = tuple(map(numba.typeof, example))
    compiled.compile(signature)
    unit = llvm.parse_assembly(compiled.inspect_llvm(signature))
    for assembly in _assemblies(module):
        unit.link_in(llvm.parse_assembly(assembly.source))
    symbol: str = compiled.overloads[signature].fndesc.llvm_func_name
    return symbol.encode() + b"\n" + bytes(_machine().emit_object(unit))


def _assemblies(module: ModuleType) -> list[Assembly]:
    return [value for value in vars(module).values() if isinstance(value, Assembly)]


def _machine() -> llvm.TargetMachine:
    features = llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
    )


class Loop:
    """A compiled function. It checks its arguments' types."""

    def __init__(self, code: bytes, example: tuple[Any, ...]) -> None:
        """Load object code, behind its symbol and a line break, into this process."""
        symbol, _, binary = code.partition(b"\n")
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())  # the code lives as long as its engine
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(binary))
        self._engine.finalize_object()
        self._function = ctypes.CFUNCTYPE(ctypes.c_int32)(self._engine.get_function_address(symbol.decode()))
        self._types = _types(example)

    def __call__(self, *arguments: Any) -> int:
        self._check(arguments)
        return self._run(list(_flat(arguments)))

    def bind(self, *arguments: Any) -> Callable[[int], int]:
        """Return a function of the first argument, an int, that costs less to call: these are the others."""
        self._check((0, *arguments))
        words = list(_flat(arguments))

        def run(first: int, kept: Any = arguments) -> int:
            return self._run([ctypes.c_int64(first), *words])

        return run

    def _check(self, arguments: tuple[Any, ...]) -> None:
        if (types := _types(arguments)) != self._types:
            raise TypeError(f"compiled for {self._types}, called with {types}")

    def _run(self, words: list[Any]) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        status = self._function(ctypes.byref(result), ctypes.byref(error), *words)
        assert status == 0, "loops without Python objects raise nothing"
        return result.value


def _flat(arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Yield what the machine is given, as numba passes it: of an array owner, parent, size, item size, data, shape and strides."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _flat(argument)
        elif isinstance(argument, np.ndarray):
            words = (0, 0, argument.size, argument.itemsize, argument.ctypes.data, *argument.shape, *argument.strides)
            yield from map(ctypes.c_int64, words)
        else:
            yield ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def _types(arguments: tuple[Any, ...]) -> list[Any]:
    """Name what the code is compiled for."""
    return [
        _types(a)
        if isinstance(a, tuple)
        else (a.dtype, a.ndim, a.flags.c_contiguous)
        if isinstance(a, np.ndarray)
        else type(a)
        for a in arguments
    ]


def _fingerprint(module: ModuleType, example: tuple[Any, ...]) -> str:
    """Name everything that machine code depends on."""
    assert module.__file__ is not None
    parts = [
        Path(module.__file__).read_bytes(),
        _assemblies(module),
        sorted((name, value) for name, value in vars(module).items() if isinstance(value, (int, float, np.number))),
        _types(example),
        llvmlite.__version__,
    ]  # numba needs one version of llvmlite
    parts += [llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _folders() -> list[Path]:
    """Where machine code may lie: beside this file or, where that is not writable, in the user's cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path(__file__).parent / "__pycache__", user / "asr"]


def _read(path: Path) -> bytes:
    """Return the code in a file, nothing if there is none or it is damaged."""
    try:
        digest, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return b""
    return code if digest == hashlib.sha256(code).hexdigest().encode() else b""


def _keep(code: bytes, file_name: str) -> None:
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f"{file_name}.{os.getpid()}"
            temporary.write_bytes(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
            temporary.replace(folder / file_name)
            return
        except OSError as error:
            logger.info("%s: %s", folder, error)
