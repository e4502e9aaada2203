"""Mamba for images: patches as tokens, pre-norm residual Mamba blocks, mean pooling, one linear layer.

A. Gu, T. Dao: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023 (the block, S6). The bidirectional
variant is that of L. Zhu et al.: Vision Mamba, ICML 2024, algorithm 1. The block's parameters have the names and the
initial values of `mamba_ssm.Mamba` (2.3), whose weights load strictly, and the other way round; out_proj is scaled by
1 / sqrt(depth) as in mamba_ssm's own model. The scan itself is in scan.py.

Multiply-accumulates (`kdbench.models.size.count`): with width D, inner width E = expand * D, rank R of delta, N states,
K taps of the convolution and L tokens, a block needs L (2 D E + K E + E (R + 2 N) + R E + 4.5 E N + 2 E + E D + 2.5 D).
Patches and classifier come on top. The scan's 4.5 E N is the literature's "9 L E N FLOPs".
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.mamba import block2, scan
from kdbench.models.mamba.rms_norm import RMSNorm
from kdbench.models.taps import Tap

NAMES = ("mamba",)
BLOCKS = ("mamba", "mamba2")


class Mamba(nn.Module):
    """The Mamba-1 block: (B, L, d_model) -> (B, L, d_model).

    `scan_backend` is one of `kdbench.models.mamba.scan.BACKENDS`. With `bidirectional` a second convolution, scan and
    delta with parameters of their own (`conv1d_b`, `A_b_log`, ...) read the sequence from its end; both are summed.

    Shapes: E channels inside the block, N states, R the rank of delta.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bidirectional: bool = False,
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_state, self.scan_backend, self.bidirectional = d_state, scan_backend, bidirectional
        self.dt_rank = math.ceil(d_model / 16)
        inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self._add_direction("", inner, d_conv)
        if bidirectional:
            self._add_direction("_b", inner, d_conv)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self._mark()

    def forward(self, x_BLD: Tensor) -> Tensor:
        u_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        y_BLE = self._scan("", u_BLE, z_BLE)
        if self.bidirectional:
            y_BLE = y_BLE + self._scan("_b", u_BLE.flip(1), z_BLE.flip(1)).flip(1)
        out: Tensor = self.out_proj(y_BLE)
        return out

    def _scan(self, way: str, u_BLE: Tensor, z_BLE: Tensor) -> Tensor:
        dt_proj = self._part("dt_proj", way)
        u_BLE = F.silu(causal_convolution(u_BLE, self._part("conv1d", way)))
        rank_and_states = [self.dt_rank, self.d_state, self.d_state]
        dt_BLR, B_BLN, C_BLN = self._part("x_proj", way)(u_BLE).split(rank_and_states, dim=-1)
        delta_BLE = F.linear(dt_BLR, dt_proj.weight)  # the scan adds the bias
        out_BEL = scan.selective_scan(
            u_BLE.transpose(1, 2),
            delta_BLE.transpose(1, 2),
            -torch.exp(_single(self._part("A_b_log" if way else "A_log"))),
            B_BLN.transpose(1, 2),
            C_BLN.transpose(1, 2),
            _single(self._part("D", way)),
            z_BLE.transpose(1, 2),
            _single(dt_proj.bias),
            self.scan_backend,
        )
        return out_BEL.transpose(1, 2)

    def _part(self, name: str, way: str = "") -> Any:
        return getattr(self, name + way)

    def _add_direction(self, way: str, inner: int, d_conv: int) -> None:
        """Draws random numbers in the order in which mamba_ssm does."""
        conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        x_proj = nn.Linear(inner, self.dt_rank + 2 * self.d_state, bias=False)
        dt_proj = nn.Linear(self.dt_rank, inner)
        nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():  # delta is log-uniform in [0.001, 0.1] at first: the bias is its inverse softplus
            low, high = math.log(0.001), math.log(0.1)
            dt = torch.exp(torch.rand(inner) * (high - low) + low).clamp(min=1e-4)
            dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        A = torch.arange(1, self.d_state + 1, dtype=torch.float32).repeat(inner, 1)
        for name, part in {"conv1d": conv, "x_proj": x_proj, "dt_proj": dt_proj}.items():
            self.add_module(name + way, part)
        self.register_parameter("A_b_log" if way else "A_log", nn.Parameter(torch.log(A)))
        self.register_parameter("D" + way, nn.Parameter(torch.ones(inner)))

    def _mark(self) -> None:
        for name, parameter in self.named_parameters():
            if name in ("A_log", "A_b_log", "D", "D_b"):
                parameter._no_weight_decay = True  # type: ignore[attr-defined]
            elif name.startswith("dt_proj") and name.endswith("bias"):
                parameter._no_reinit = True  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # copies of parameters lose their attributes


def causal_convolution(x_BLE: Tensor, conv: nn.Conv1d) -> Tensor:
    """`conv(x)` for each channel alone, each token seeing itself and those before: (B, L, E) -> (B, L, E).

    In the layout of a two-dimensional convolution with channels last, which a CPU does twice as fast.
    """
    padded = F.pad(x_BLE, (0, 0, conv.kernel_size[0] - 1, 0)).transpose(1, 2).unsqueeze(2)
    return F.conv2d(padded, conv.weight.unsqueeze(2), conv.bias, groups=conv.groups).squeeze(2).transpose(1, 2)


def _single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Residual(nn.Module):
    """x + mixer(norm(x)), tokens (B, L, D)."""

    def __init__(self, mixer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mixer = mixer

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + self.mixer(self.norm(x_BLD))


class MambaClassifier(nn.Module):
    """Images (B, channels, H, W) -> logits (B, classes); `block1`, ... are tokens (B, L, D)."""

    def __init__(self, mixers: list[nn.Module], width: int, patch: int, size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty((size // patch) ** 2, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Residual(mixer, width) for mixer in mixers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.classifier = nn.Linear(width, classes)
        self.kd_taps = {f"block{i + 1}": Tap(f"blocks.{i}") for i in range(len(mixers))}
        self.kd_taps["pooled"] = Tap("classifier", "input")
        self.kd_classifier = "classifier"
        for mixer in mixers:
            with torch.no_grad():
                mixer.out_proj.weight /= math.sqrt(len(mixers))  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        x_BLD = self.patch_embed(x).flatten(2).transpose(1, 2).contiguous() + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(x_BLD)).mean(1))
        return logits


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    size: int,
    depth: int = 8,
    dim: int = 64,
    patch: int = 4,
    d_state: int = 16,
    d_conv: int = 4,
    expand: int = 2,
    bidirectional: bool = False,
    block: str = "mamba",
    headdim: int = 64,
    backend: str = "auto",
) -> nn.Module:
    """A Mamba of `depth` blocks of width `dim`, on patches of `patch` x `patch` pixels.

    Args:
        block: `mamba`, or `mamba2` (T. Dao, A. Gu 2024; mamba_ssm's own, CUDA only) with heads of `headdim` channels.
        backend: of the scan, one of `kdbench.models.mamba.scan.BACKENDS`.

    Raises:
        ValueError: values that make no network.
        UserError: the backend or block is unavailable on this machine.
    """
    numbers = {"depth": depth, "dim": dim, "patch": patch, "d_state": d_state, "d_conv": d_conv, "expand": expand}
    for option, value in {**numbers, "headdim": headdim}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"option '{option}' must be a whole number above 0, not {value!r}")
    if size % patch:
        raise ValueError(f"option 'patch' must divide the size of the images: {patch} does not divide {size}")
    if block not in BLOCKS:
        raise ValueError(f"option 'block' must be one of {', '.join(BLOCKS)}, not {block!r}")
    if type(bidirectional) is not bool:
        raise ValueError(f"option 'bidirectional' must be true or false, not {bidirectional!r}")
    if not isinstance(backend, str):
        raise ValueError(f"option 'backend' must be one of {', '.join(scan.BACKENDS)}, not {backend!r}")
    mixers: list[nn.Module]
    if block == "mamba2":
        if bidirectional:
            raise ValueError("option 'bidirectional' is for block 'mamba' only")
        mixers = [block2.build(dim, d_state, d_conv, expand, headdim, backend) for _ in range(depth)]
    else:
        scan.check(backend)
        mixers = [Mamba(dim, d_state, d_conv, expand, bidirectional, backend) for _ in range(depth)]
    return MambaClassifier(mixers, dim, patch, size, channels, classes)
