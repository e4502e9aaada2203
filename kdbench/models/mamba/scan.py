"""The selective scan (S6) of Mamba-1, as one operator with named backends.

A. Gu, T. Dao: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, equation 2 and algorithm 2, with
the skip connection and the gate that the block puts around it:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    out_t = (C_t h_t + D u_t) silu(z_t),
    delta_t = softplus(given delta_t + delta_bias)

| backend     | runs on | precision      | is                                                      |
|-------------|---------|----------------|---------------------------------------------------------|
| `mamba_ssm` | CUDA    | fp32, bf16     | mamba_ssm's compiled kernels                            |
| `native`    | CPU     | fp32           | kdbench's C++ kernel, compiled on first use             |
| `torch`     | any     | fp32, fp64     | PyTorch, with the gradient worked out by hand           |

`auto` is `mamba_ssm` on CUDA and `native` on a CPU where they can be had, else `torch`; `KDBENCH_SCAN` names another
default. What `auto` means is settled once in a process and logged: it does not change within an experiment.

The operator is registered with torch, so that it can be counted on the meta device (`macs` below) and torch.compile
takes it as it is. It has no second derivative, as mamba_ssm's kernels have none.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, did_you_mean
from kdbench.models import operators, size
from kdbench.models.mamba import scan_native, scan_torch
from kdbench.models.mamba.scan_inputs import Inputs

BACKENDS = ("auto", "torch", "native", "mamba_ssm")
_CPU = {"torch": scan_torch, "native": scan_native}
_log = logging.getLogger(__name__)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    backend: str = "auto",
) -> Tensor:
    """`mamba_ssm`'s `selective_scan_fn(..., delta_softplus=True)` with B and C that vary over time.

    Args:
        u, delta, z: (batch, channels, length). Fastest on a CPU as transposed views of (batch, length, channels).
        A: (channels, states), negative for a state that decays.
        B, C: (batch, states, length).
        D, delta_bias: (channels,).
        backend: one of BACKENDS.

    Returns:
        (batch, channels, length), in the type of `u`.

    Raises:
        UserError: the backend cannot run here, or not on these tensors.
    """
    if u.is_meta:
        used = "torch"
    elif (used := resolve(backend, u.device.type, u.dtype)) == "mamba_ssm":
        return _cuda_kernels(u, delta, A, B, C, D, z, delta_bias)
    out: Tensor = torch.ops.kdbench.selective_scan(u, delta, A, B, C, D, z, delta_bias, used)
    return out


def resolve(backend: str, device: str, dtype: torch.dtype) -> str:
    """The backend that runs on a kind of device (`cpu`, `cuda`) for tensors of a type.

    Raises:
        UserError: there is no such backend, it is unavailable on this machine, or not for such tensors.
    """
    if backend == "auto":
        return _automatic(device, dtype)
    check(backend)
    if backend == "native" and (device != "cpu" or dtype == torch.float64):
        what = f"device {device}" if device != "cpu" else "double precision"
        raise UserError(f"scan backend 'native' runs on the CPU in single precision, not on {what}; use 'torch'")
    if backend == "mamba_ssm" and (device != "cuda" or dtype == torch.float64):
        what = f"device {device}" if device != "cuda" else "double precision"
        raise UserError(f"scan backend 'mamba_ssm' runs on CUDA in single precision or bf16, not on {what}; use 'auto'")
    return backend


# torch.compile asks when it traces, and looks no further. This is all that torch.compiler.assume_constant_result does;
# it loads the compiler for it, which takes as long as torch itself.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check(backend: str) -> None:
    """Raises UserError unless the backend exists and can be had on this machine."""
    if backend not in BACKENDS:
        raise UserError(
            f"there is no scan backend '{backend}'{did_you_mean(backend, BACKENDS)}; there are {', '.join(BACKENDS)}"
        )
    problems: dict[str, Callable[[], str]] = {"native": scan_native.problem, "mamba_ssm": kernels_problem}
    if backend in problems and (reason := problems[backend]()):
        raise UserError(f"scan backend '{backend}' is unavailable: {reason}")


@functools.cache
def _automatic(device: str, dtype: torch.dtype) -> str:
    used, reason = "torch", ""
    if (chosen := os.environ.get("KDBENCH_SCAN") or "auto") != "auto":
        used = resolve(chosen, device, dtype)
    elif dtype != torch.float64 and device in ("cpu", "cuda"):
        fast, problem = ("native", scan_native.problem) if device == "cpu" else ("mamba_ssm", kernels_problem)
        reason = problem()
        used = used if reason else fast
    if reason:
        _log.warning("selective scan on %s: backend %s, slower than %s (%s)", device, used, fast, reason)
    else:
        _log.info("selective scan on %s: backend %s", device, used)
    return used


def backend_in_use(model: nn.Module) -> str | None:
    """The backend with which a model's scans run where its parameters are now; None for a model without a scan.

    A module states its choice in the attribute `scan_backend`. Models that mix backends answer them joined by "+".
    """
    used = set()
    for module in model.modules():
        backend = getattr(module, "scan_backend", None)
        first = next(module.parameters(), None) if isinstance(backend, str) else None
        if isinstance(backend, str) and first is not None and not first.is_meta:
            used.add(resolve(backend, first.device.type, first.dtype))
    return "+".join(sorted(used)) or None


def states() -> list[tuple[str, str]]:
    """Name and state of each backend on this machine, for `kdbench doctor`."""
    native, kernels = scan_native.problem(), kernels_problem()
    return [
        ("scan torch", "always there"),
        ("scan native", native or "compiled for this CPU, and used on it"),
        ("scan mamba_ssm", kernels or "compiled kernels found, used on CUDA"),
    ]


@functools.cache
def kernels_problem() -> str:
    """Why mamba_ssm's CUDA kernels cannot be used on this machine; empty where they can."""
    try:
        compiled = importlib.import_module("selective_scan_cuda")
    except ImportError as error:
        if error.name != "selective_scan_cuda":  # it is there, but what it is linked to is not
            return f"mamba_ssm's kernels cannot be loaded ({str(error).splitlines()[0]}); compile them for this torch"
        return "mamba_ssm's CUDA kernels are not installed; the README says how to compile them"
    if not hasattr(compiled, "fwd"):
        return "mamba_ssm's CUDA kernels are not installed; the README says how to compile them"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    # Here, and not as a decorator: it loads the compiler, which takes as long as torch itself.
    global _cuda_kernels
    _cuda_kernels = torch.compiler.disable(_cuda_kernels)
    return ""


def _cuda_kernels(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    interface: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    delta, B, C, z = (x.to(u.dtype) for x in (delta, B, C, z))  # as the kernels want them
    A, D, delta_bias = A.float(), D.float(), delta_bias.float()
    out: Tensor = interface.selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)
    return out


@torch.library.custom_op("kdbench::selective_scan", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    backend: str,
) -> Tensor:
    return _CPU[backend].forward(Inputs(u, delta, A, B, C, D, z, delta_bias))


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    backend: str,
) -> Tensor:
    return _by_token(u)


@torch.library.custom_op("kdbench::selective_scan_backward", mutates_args=())
def _scan_backward(dout: Tensor, inputs: Sequence[Tensor], backend: str) -> list[Tensor]:
    return list(_CPU[backend].backward(dout, Inputs(*inputs)))


@_scan_backward.register_fake
def _(dout: Tensor, inputs: Sequence[Tensor], backend: str) -> list[Tensor]:
    u, delta, A, B, C, D, z, delta_bias = inputs
    return [
        _by_token(u),
        _by_token(delta),
        A.new_empty(A.shape),
        _by_token(B),
        _by_token(C),
        D.new_empty(D.shape),
        _by_token(z),
        delta_bias.new_empty(delta_bias.shape),
    ]


def _by_token(x: Tensor) -> Tensor:
    batch, channels, length = x.shape
    return x.new_empty(batch, length, channels).transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.kdbench.selective_scan_backward(dout, list(ctx.saved_tensors), ctx.backend)
    return (*grads, None)


_scan.register_autograd(_differentiate, setup_context=_keep)


def macs(u: Sequence[int], delta: Sequence[int], A: Sequence[int], *others: Any, **out_shape: Any) -> int:
    """4.5 for each channel, state and token (the literature's "9 L D N FLOPs"), and 2 for skip connection and gate."""
    batch, channels, length = u
    return batch * length * channels * (9 * A[1] + 4) // 2


def _plain(*arguments: Any) -> Tensor:
    return scan_torch.parallel(Inputs(*arguments[:-1]))  # without the backend


size.register(torch.ops.kdbench.selective_scan, macs)
operators.register(torch.ops.kdbench.selective_scan.default, _plain)
