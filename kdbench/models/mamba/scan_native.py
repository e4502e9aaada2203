"""The selective scan as a small C++ kernel, compiled once on the user's machine with the system compiler.

`native/selective_scan.cpp` needs no headers but the standard library's, so any version of torch and any compiler of the
last years will do; it is called through ctypes. The library is kept in the user's cache folder under a name made of the
source, the flags, the compiler and the CPU (it is compiled for that CPU), and appears there by a rename: processes that
start side by side never see half of it.

It is compiled with -ffast-math, but linked without: linking with it adds start-up code that flushes denormal numbers to
zero in the whole process. Infinities and NaNs keep their meaning, so that a diverging loss is seen.

Single precision, CPU. Answers do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from kdbench.models.mamba.scan_inputs import Inputs

SOURCE = Path(__file__).parent / "selective_scan.cpp"
COMPILE = ["-std=c++17", "-O3", "-fPIC", "-Wno-psabi", "-ffast-math", "-fno-finite-math-only", "-fno-associative-math"]
LINK = ["-shared", "-pthread"]
THIS_CPU = ["-march=native"]  # left out where the compiler does not know it
WORK_OF_A_THREAD = 1 << 18  # states x tokens x channels below which starting another thread costs more than it saves


class Unavailable(Exception):
    """One sentence: why there is no native kernel here, and what to do."""


def problem() -> str:
    """Why the kernel cannot be had on this machine, as one sentence; empty where it can. Compiles it if need be."""
    try:
        library()
    except Unavailable as reason:
        return str(reason)
    return ""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel. The answer, a failure too, holds for this process: it cannot change within an experiment.

    Raises:
        Unavailable: no compiler, it fails, or the cache folder cannot be written.
    """
    if isinstance(outcome := _outcome(), str):
        raise Unavailable(outcome)
    return outcome


@functools.cache
def _outcome() -> ctypes.CDLL | str:
    try:
        return _load()
    except Unavailable as reason:
        return str(reason)


def _load() -> ctypes.CDLL:
    compiler = find_compiler()
    path = cache_folder() / f"selective_scan-{_key(compiler)}.so"
    for fresh in (False, True):
        if fresh or not path.is_file():
            _compile(compiler, path)
        try:
            loaded = ctypes.CDLL(str(path))
            pointer, integer = ctypes.c_void_p, ctypes.c_int64
            loaded.kdbench_scan_forward.argtypes = [pointer, pointer, pointer, integer, integer]
            loaded.kdbench_scan_backward.argtypes = [pointer, pointer, pointer, pointer, integer, integer]
            loaded.kdbench_scan_forward.restype = loaded.kdbench_scan_backward.restype = None
            return loaded
        except (OSError, AttributeError) as error:  # a damaged file in the cache is compiled once more
            reason = error
    raise Unavailable(f"the compiled selective scan cannot be loaded: {_first_line(str(reason))}")


def find_compiler() -> list[str]:
    """The command in CXX, else the first of c++, g++, clang++ on the path.

    Raises:
        Unavailable: there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    if chosen:
        raise Unavailable(f"CXX names no program ({chosen[0]}): unset it or name a C++ compiler")
    raise Unavailable("no C++ compiler found: install g++ or clang++, or name one in CXX")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/kdbench/native, else ~/.cache/kdbench/native."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdbench" / "native"


def _key(compiler: list[str]) -> str:
    parts = [SOURCE.read_text(encoding="utf-8"), *COMPILE, *THIS_CPU, *LINK, *compiler, _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """What tells apart CPUs that run different instructions; a cache folder may be shared by many machines."""
    parts = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kinds = ("model name", "flags", "Features")
        parts += [next((line for line in lines if line.startswith(kind)), "") for kind in kinds]
    except OSError:
        pass
    return "\n".join(parts)


def _compile(compiler: list[str], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as name:
            folder = Path(name)
            unlinked, linked = str(folder / "scan.o"), str(folder / "scan.so")
            if error := _run([*compiler, *COMPILE, *THIS_CPU, "-c", str(SOURCE), "-o", unlinked]):
                said = _run([*compiler, *COMPILE, "-c", str(SOURCE), "-o", unlinked]) and error
                if said:
                    raise Unavailable(f"{Path(compiler[0]).name} cannot compile the selective scan: {said}")
            if said := _run([*compiler, unlinked, *LINK, "-o", linked]):
                raise Unavailable(f"{Path(compiler[0]).name} cannot link the selective scan: {said}")
            Path(linked).replace(path)
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise Unavailable(
            f"the cache folder of kdbench cannot be used ({what}): set XDG_CACHE_HOME to a writable folder"
        ) from error


def _run(command: list[str]) -> str:
    """The first error of a command, empty where it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    return _first_line(lines[0] if lines else done.stderr) or f"exit code {done.returncode}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else ""


def forward(given: Inputs) -> Tensor:
    """(B, D, L), laid out by tokens in memory."""
    call = _Call(given)
    out_BLD = torch.empty(call.batch, call.length, call.channels)
    if out_BLD.numel():
        library().kdbench_scan_forward(call.shape, call.inputs, out_BLD.data_ptr(), call.parts, call.threads)
    return out_BLD.to(given.u_BDL.dtype).transpose(1, 2)


def backward(dout_BDL: Tensor, given: Inputs) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias, each in the type of its tensor."""
    call = _Call(given)
    dout_BLD = dout_BDL.transpose(1, 2).float().contiguous()
    batch, length, channels, states, parts = call.batch, call.length, call.channels, call.states, call.parts
    du, ddelta, dz = (torch.empty(batch, length, channels) for _ in range(3))
    dA = torch.empty(batch, channels, states)
    dB, dC = (torch.empty(parts, batch, length, states) for _ in range(2))
    dD, dbias = (torch.empty(batch, channels) for _ in range(2))
    if du.numel():
        library().kdbench_scan_backward(
            call.shape,
            call.inputs,
            dout_BLD.data_ptr(),
            _pointers(du, ddelta, dA, dB, dC, dD, dz, dbias),
            parts,
            call.threads,
        )
    found = (
        du.transpose(1, 2),
        ddelta.transpose(1, 2),
        dA.sum(0),
        dB.sum(0).transpose(1, 2),
        dC.sum(0).transpose(1, 2),
        dD.sum(0),
        dz.transpose(1, 2),
        dbias.sum(0),
    )
    return tuple(grad.to(x.dtype) for grad, x in zip(found, given, strict=True))


class _Call:
    """Shapes and pointers as the kernel takes them; holds the tensors as long as it is used."""

    def __init__(self, given: Inputs) -> None:
        u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, bias_D = given
        self.batch, self.channels, self.length = u_BDL.shape
        self.states = A_DN.shape[1]
        (u, delta, B, C, z), strides = zip(*map(_rows, (u_BDL, delta_BDL, B_BNL, C_BNL, z_BDL)), strict=True)
        A, D, bias = (x.float().contiguous() for x in (A_DN, D_D, bias_D))
        self.tensors = (u, delta, A, B, C, D, z, bias)
        self.inputs = _pointers(*self.tensors)
        sizes = (self.batch, self.length, self.channels, self.states, *strides)
        self.shape = (ctypes.c_int64 * len(sizes))(*sizes)
        # Channels are split where the sequences alone would not occupy many cores: by shape, never by threads.
        self.parts = min(-(-self.channels // 16), -(-16 // max(self.batch, 1)))
        work = self.batch * self.length * self.channels * self.states
        self.threads = max(1, min(torch.get_num_threads(), work // WORK_OF_A_THREAD))


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """(B, D, L) -> (B, L, D) in single precision, channels side by side, and the step from one row to the next.

    Slices of wider rows, as projections answer them, are taken as they are.
    """
    x = x.transpose(1, 2).float()
    batch, length, width = x.shape
    step = x.stride(1 if length > 1 else 0)
    if (width == 1 or x.stride(2) == 1) and (batch == 1 or length == 1 or x.stride(0) == length * step):
        return x, step
    return x.contiguous(), width


def _pointers(*tensors: Tensor) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
