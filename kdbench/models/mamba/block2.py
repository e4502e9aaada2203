"""mamba_ssm's Mamba-2 block (T. Dao, A. Gu: Transformers are SSMs, ICML 2024), which runs on CUDA only.

Counted on the meta device by the recurrence, with the convention of Mamba-1's scan: 4.5 multiply-accumulates for each
inner channel, state and token, 2 for skip connection and gate, and the convolution; projections come on top. (The
kernels compute the same in chunks, as matrix products, with more multiply-accumulates and less time.)
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.models import size
from kdbench.models.mamba import scan

_LOST = ("A_log", "D", "dt_bias")  # mamba_ssm marks these: no weight decay


class Mamba2(nn.Module):
    """(B, L, d_model) -> (B, L, d_model). Parameters are those of `mamba_ssm.Mamba2`, below `inner`."""

    scan_backend = "mamba_ssm"

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    @property
    def out_proj(self) -> nn.Linear:
        found: nn.Linear = self.inner.out_proj
        return found

    def forward(self, x_BLD: Tensor) -> Tensor:
        inner = self.inner
        if x_BLD.is_meta:
            mixed = torch.ops.kdbench.ssd(inner.in_proj(x_BLD), inner.d_inner, inner.d_state, inner.d_conv)
            counted: Tensor = inner.out_proj(mixed)
            return counted
        if x_BLD.device.type != "cuda":
            raise UserError("Mamba-2 blocks run on CUDA only; use `--device cuda`, or `block: mamba` on a CPU")
        out: Tensor = inner(x_BLD)
        return out

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in _LOST:  # copies of parameters lose their attributes
            getattr(self.inner, name)._no_weight_decay = True


def build(dim: int, d_state: int, d_conv: int, expand: int, headdim: int, backend: str) -> nn.Module:
    """Raises ValueError for values that make no block, UserError where mamba_ssm or CUDA is missing."""
    if backend not in ("auto", "mamba_ssm"):
        raise ValueError(f"block 'mamba2' runs with backend mamba_ssm only, not with {backend!r}")
    if expand * dim % headdim:
        raise ValueError(f"option 'headdim' must divide expand * dim: {headdim} does not divide {expand * dim}")
    if problem := scan.kernels_problem():
        raise UserError(f"Mamba-2 blocks run on CUDA with mamba_ssm's kernels only: {problem}")
    fused = importlib.util.find_spec("causal_conv1d") is not None  # else Mamba2 calls None
    library = importlib.import_module("mamba_ssm.modules.mamba2")
    made = library.Mamba2(dim, d_state, d_conv, expand=expand, headdim=headdim, use_mem_eff_path=fused)
    return Mamba2(made)


@torch.library.custom_op("kdbench::ssd", mutates_args=())
def _ssd(projected: Tensor, d_inner: int, d_state: int, d_conv: int) -> Tensor:
    raise NotImplementedError("kdbench::ssd stands for a Mamba-2 block on the meta device, where it is counted")


@_ssd.register_fake
def _(projected: Tensor, d_inner: int, d_state: int, d_conv: int) -> Tensor:
    return projected.new_empty(*projected.shape[:-1], d_inner)


def macs(projected: Sequence[int], d_inner: int, d_state: int, d_conv: int, **out_shape: Any) -> int:
    batch, length, _ = projected
    each = d_inner * (9 * d_state + 4) // 2 + d_conv * (d_inner + 2 * d_state)
    return batch * length * each


size.register(torch.ops.kdbench.ssd, macs)
