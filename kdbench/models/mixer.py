"""MLP-Mixer of any size: timm's, whose names fix patches, width and depth for large images.

I. Tolstikhin, N. Houlsby, A. Kolesnikov, L. Beyer, X. Zhai, T. Unterthiner, J. Yung, A. Steiner, D. Keysers,
J. Uszkoreit, M. Lucic, A. Dosovitskiy. NeurIPS 2021.
"""

from __future__ import annotations

from torch import nn

from kdbench.models.equip import equip

NAMES = ("mixer",)


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    size: int,
    patch_size: int = 4,
    dim: int = 64,
    depth: int = 4,
    token_ratio: float = 0.5,
    channel_ratio: float = 4.0,
) -> nn.Module:
    """Images (B, channels, size, size) -> logits (B, classes).

    `token_ratio` and `channel_ratio`: how wide the two MLPs of a block are inside, as multiples of `dim`. Raises
    ValueError for values that make no network.
    """
    if patch_size < 1 or size % patch_size:
        raise ValueError(f"patch_size {patch_size} must divide the images' size, {size}")
    if min(dim, depth) < 1 or min(token_ratio, channel_ratio) * dim < 1:
        raise ValueError("dim, depth and the ratios must be above 0, and wide enough for one unit")
    from timm.models.mlp_mixer import MlpMixer

    model = MlpMixer(
        num_classes=classes,
        img_size=size,
        in_chans=channels,
        patch_size=patch_size,
        num_blocks=depth,
        embed_dim=dim,
        mlp_ratio=(token_ratio, channel_ratio),
    )
    return equip(model, name, classes=classes)
