"""Names of models, found without importing torch or timm: what `kdbench check` needs."""

from __future__ import annotations
