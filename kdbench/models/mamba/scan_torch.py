"""The selective scan in plain PyTorch: one pass over the tokens, with the gradient worked out by hand.

Autograd would keep every intermediate state (several tensors of batch x channels x states x tokens) and, where a token
is selected by an index, fill a tensor of that size for each token. Here the forward pass keeps nothing; the backward
pass computes the states again, keeps them once, and walks back over them. Any device; in double precision for double
inputs, else in single precision.

With w_t = delta_t u_t, a_t = exp(delta_t A), h_t = a_t h_{t-1} + w_t B_t, y_t = C_t h_t + D u_t and g_t the gradient of
the loss with respect to h_t:

    g_t = C_t dy_t + a_{t+1} g_{t+1}      dB_t = g_t w_t      dC_t = dy_t h_t      dw_t = B_t g_t
    d(delta_t A) = g_t a_t h_{t-1}

States are laid out (batch, states, channels): channels, the larger dimension, run fastest. The backward pass takes
a few sequences at a time, which bounds its memory and keeps their states in the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.models.mamba.scan_inputs import Inputs

STATES_AT_ONCE = 1 << 16  # of the sequences together; fewer: calling PyTorch costs more than computing


def forward(given: Inputs) -> Tensor:
    """(B, D, L), laid out by tokens in memory."""
    u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, bias_D = given
    kind = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    u_BLD, delta_BLD, B_BLN, C_BLN, z_BLD = _by_token(kind, u_BDL, delta_BDL, B_BNL, C_BNL, z_BDL)
    A_ND, D_D, bias_D = A_DN.to(kind).T.contiguous(), D_D.to(kind), bias_D.to(kind)
    delta_BLD = F.softplus(delta_BLD + bias_D)
    w_BLD = delta_BLD * u_BLD
    y_BLD = D_D * u_BLD
    h_BND = u_BLD.new_zeros(len(u_BLD), *A_ND.shape)
    a_BND = torch.empty_like(h_BND)
    for delta_BD, w_BD, B_BN, C_BN, y_BD in zip(
        *(x.unbind(1) for x in (delta_BLD, w_BLD, B_BLN, C_BLN, y_BLD)), strict=True
    ):
        torch.mul(delta_BD.unsqueeze(1), A_ND, out=a_BND).exp_()
        h_BND.mul_(a_BND).addcmul_(B_BN.unsqueeze(2), w_BD.unsqueeze(1))
        y_BD += torch.bmm(C_BN.unsqueeze(1), h_BND).squeeze(1)
    return y_BLD.mul_(F.silu(z_BLD)).to(u_BDL.dtype).transpose(1, 2)


def parallel(given: Inputs) -> Tensor:
    """What `forward` computes, in a graph of log2(L) steps without writing in place: for exported models.

    Recursive doubling (P. M. Kogge, H. S. Stone: A Parallel Algorithm for the Efficient Solution of a General Class of
    Recurrence Equations, 1973): after k steps each token's state knows the 2^k tokens up to it. Nothing is divided, so
    that it is as exact as the loop; it holds batch x tokens x channels x states numbers at once.
    """
    u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, bias_D = given
    kind = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    u_BLD, delta_BLD, B_BLN, C_BLN, z_BLD = (
        x.transpose(1, 2).to(kind) for x in (u_BDL, delta_BDL, B_BNL, C_BNL, z_BDL)
    )
    delta_BLD = F.softplus(delta_BLD + bias_D.to(kind))
    a_BLDN = torch.exp(delta_BLD.unsqueeze(3) * A_DN.to(kind))
    h_BLDN = (delta_BLD * u_BLD).unsqueeze(3) * B_BLN.unsqueeze(2)
    length, reach = u_BLD.shape[1], 1
    while reach < length:
        before, after = a_BLDN[:, :reach], a_BLDN[:, reach:]
        h_BLDN = torch.cat([h_BLDN[:, :reach], h_BLDN[:, reach:] + after * h_BLDN[:, :-reach]], dim=1)
        a_BLDN = torch.cat([before, after * a_BLDN[:, :-reach]], dim=1)
        reach *= 2
    y_BLD = (h_BLDN * C_BLN.unsqueeze(2)).sum(3) + D_D.to(kind) * u_BLD
    return (y_BLD * F.silu(z_BLD)).to(u_BDL.dtype).transpose(1, 2)


def backward(dout_BDL: Tensor, given: Inputs) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias, each in the type of its tensor."""
    sequences = max(1, STATES_AT_ONCE // given.A_DN.numel())
    of_sequences = {name: x.split(sequences) for name, x in given._asdict().items() if x.dim() == 3}
    parts = [
        _backward(dout, given._replace(**dict(zip(of_sequences, few, strict=True))))
        for dout, *few in zip(dout_BDL.split(sequences), *of_sequences.values(), strict=True)
    ]
    grads = []
    for x, pieces in zip(given, zip(*parts, strict=True), strict=True):
        whole = torch.cat(pieces) if x.dim() == 3 else torch.stack(pieces).sum(0)
        grads.append((whole.transpose(1, 2) if x.dim() == 3 else whole).to(x.dtype))
    return tuple(grads)


def _backward(dout_BDL: Tensor, given: Inputs) -> tuple[Tensor, ...]:
    """Gradients of a few sequences, by token: (B, L, D) and (B, L, N)."""
    u_BDL, delta_BDL, A_DN, B_BNL, C_BNL, D_D, z_BDL, bias_D = given
    kind = torch.float64 if u_BDL.dtype == torch.float64 else torch.float32
    u_BLD, raw_BLD, B_BLN, C_BLN, z_BLD, dout_BLD = _by_token(kind, u_BDL, delta_BDL, B_BNL, C_BNL, z_BDL, dout_BDL)
    A_ND, D_D, bias_D = A_DN.to(kind).T.contiguous(), D_D.to(kind), bias_D.to(kind)
    raw_BLD = raw_BLD + bias_D
    delta_BLD = F.softplus(raw_BLD)
    w_BLD = delta_BLD * u_BLD
    gate_BLD = torch.sigmoid(z_BLD)
    dy_BLD = dout_BLD * z_BLD * gate_BLD
    y_BLD = D_D * u_BLD
    batch, length, _ = u_BLD.shape

    h_LBND = u_BLD.new_empty(length, batch, *A_ND.shape)
    a_BND = torch.empty_like(h_LBND[0])
    for t in range(length):
        torch.mul(B_BLN[:, t].unsqueeze(2), w_BLD[:, t].unsqueeze(1), out=h_LBND[t])
        if t:
            torch.mul(delta_BLD[:, t].unsqueeze(1), A_ND, out=a_BND).exp_()
            h_LBND[t].addcmul_(a_BND, h_LBND[t - 1])
        y_BLD[:, t] += torch.bmm(C_BLN[:, t].unsqueeze(1), h_LBND[t]).squeeze(1)
    dz_BLD = dout_BLD * y_BLD * (gate_BLD * (1 + z_BLD * (1 - gate_BLD)))

    dB_BLN, dC_BLN = torch.empty_like(B_BLN), torch.empty_like(C_BLN)
    dw_BLD = y_BLD  # its memory is free from here on
    ddelta_BLD = torch.zeros_like(u_BLD)
    g_BND, dA_BND = torch.zeros_like(a_BND), torch.zeros_like(a_BND)
    for t in reversed(range(length)):
        dy_BD, h_BND, delta_BD = dy_BLD[:, t], h_LBND[t], delta_BLD[:, t].unsqueeze(1)
        g_BND.addcmul_(C_BLN[:, t].unsqueeze(2), dy_BD.unsqueeze(1))
        dC_BLN[:, t] = torch.bmm(h_BND, dy_BD.unsqueeze(2)).squeeze(2)
        dB_BLN[:, t] = torch.bmm(g_BND, w_BLD[:, t].unsqueeze(2)).squeeze(2)
        dw_BLD[:, t] = torch.bmm(B_BLN[:, t].unsqueeze(1), g_BND).squeeze(1)
        if t:
            g_BND.mul_(torch.mul(delta_BD, A_ND, out=a_BND).exp_())
            torch.mul(g_BND, h_LBND[t - 1], out=a_BND)  # d(delta_t A)
            dA_BND.addcmul_(a_BND, delta_BD)
            ddelta_BLD[:, t] = a_BND.mul_(A_ND).sum(1)
    ddelta_BLD.addcmul_(dw_BLD, u_BLD).mul_(torch.sigmoid(raw_BLD))
    du_BLD = dw_BLD.mul_(delta_BLD).addcmul_(dy_BLD, D_D)
    dD_D, dbias_D = (dy_BLD * u_BLD).sum((0, 1)), ddelta_BLD.sum((0, 1))
    return du_BLD, ddelta_BLD, dA_BND.sum(0).T, dB_BLN, dC_BLN, dD_D, dz_BLD, dbias_D


def _by_token(kind: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, D, L) -> (B, L, D), contiguous."""
    return tuple(x.transpose(1, 2).to(kind).contiguous() for x in tensors)
