"""What a selective scan is given, as its backends on the CPU take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The arguments of `kdbench.models.mamba.scan.selective_scan`: B sequences of L tokens, D channels, N states."""

    u_BDL: Tensor
    delta_BDL: Tensor
    A_DN: Tensor
    B_BNL: Tensor
    C_BNL: Tensor
    D_D: Tensor
    z_BDL: Tensor
    bias_D: Tensor
