"""Size and work of a model: parameters, and multiply-accumulates of one image.

Convention: one multiply-accumulate (MAC) for each product that convolutions, linear layers and the two matrix products
of attention sum up, in eval mode, for one image; operations of a `register`ed formula come on top: Mamba's scan, and
the RMS norm before its blocks, which no other family has counted (`render` says so). Biases, other norms, activations,
pooling, softmax and other element-wise work are not counted. Parameters count once where they are shared;
buffers do not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdbench.batch import call
from kdbench.data.signature import Signature, signature_of
from kdbench.errors import UserError

_FORMULAS: dict[Any, Callable[..., int]] = {}


def register(operator: Any, macs: Callable[..., int]) -> None:
    """Count a custom operator (`torch.ops.my_library.selective_scan`), which would otherwise count as nothing.

    `macs` is called with the operator's arguments, tensors replaced by their shapes, and `out_shape=`; it returns
    multiply-accumulates. The operator needs a fake (meta) implementation, as torch.compile needs one too.
    """
    _FORMULAS[operator] = lambda *args, **kwargs: 2 * macs(*args, **kwargs)  # torch counts FLOPs, two a product


def count(model: nn.Module, inputs: Signature | tuple[int, ...]) -> tuple[int, int]:
    """(parameters, MACs of one example) of a model; `inputs` may be the shape of one tensor, (channels, H, W) or (F,).

    Counted on a copy on the meta device: nothing is computed and the model is left alone. A model whose forward pass
    looks at values is counted on a copy with zero weights on the CPU instead.

    Raises:
        UserError: the model does not take such an example.
    """
    model = getattr(model, "_orig_mod", model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    try:
        return parameters, _macs(_copy(model, "meta"), inputs)
    except Exception:
        try:
            return parameters, _macs(_copy(model, "cpu"), inputs)
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = " (check its img_size and patch_size)" if hasattr(model, "patch_embed") else ""
            raise UserError(f"{type(model).__name__} cannot run on a {_described(inputs)}{hint}: {said}") from error


def zeros(model: nn.Module) -> int:
    """How many numbers are 0 in a model's matrices and convolutions: what sparse storage and kernels may leave out."""
    return sum(int((weight == 0).sum()) for weight in model.parameters() if weight.ndim > 1)


def _described(inputs: Signature | tuple[int, ...]) -> str:
    signature = signature_of(inputs)
    if len(signature.shape) == 3:
        return f"{signature} image"
    return f"row of {signature} numbers" if len(signature.shape) == 1 else f"example ({signature})"


def _macs(model: nn.Module, inputs: Signature | tuple[int, ...]) -> int:
    model.eval()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    example = signature_of(inputs).zeros(1, dtype=like.dtype, device=like.device)
    with _visible(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        call(model, example)
    return counter.get_total_flops() // 2


@contextmanager
def _visible() -> Iterator[None]:
    """Fused attention taken apart into matrix products, which the counter sees on every device."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _copy(model: nn.Module, device: str) -> nn.Module:
    """A deep copy whose parameters and buffers are zeros on `device`; what was shared is shared again."""
    empty: dict[int, Any] = {id(b): torch.zeros_like(b, device=device) for b in model.buffers()}
    for p in model.parameters():  # without gradient: torch's counter trips over bare parameters given to a submodule
        empty[id(p)] = nn.Parameter(torch.zeros_like(p, device=device), requires_grad=False)
    return copy.deepcopy(model, empty)
