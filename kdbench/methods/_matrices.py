"""The weight matrices of a model: which there are, which are chosen, and which teacher's matrix belongs to which.

A matrix is the weight of a linear layer (out, in), of a convolution as (out, in * k * k), or the joint projection of
`nn.MultiheadAttention`. It is named by the path of its layer (`blocks.0.attn.qkv`); the joint projection by
`<path>.in_proj`. A parameter that several layers share is no one's matrix. Layers whose weight is parametrised by
something else than an MPO are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING

from kdbench.errors import did_you_mean
from kdbench.lazy import nn
from kdbench.method import Refusal

if TYPE_CHECKING:
    from torch import Tensor

# Components of paths that are no layers of the body: embeddings, what pools them, what answers.
OUTSIDE = re.compile(r"embed|^(pooler|heads?|head_dist|classifier|cls|lm_head|stem|conv_stem)$")


@dataclass(frozen=True)
class Matrix:
    """One weight of a layer; `name` is the parameter's."""

    layer: nn.Module
    name: str

    @property
    def weight(self) -> Tensor:
        return getattr(self.layer, self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in): rows, columns."""
        weight = self.weight
        return weight.shape[0], prod(weight.shape[1:])


def matrices(model: nn.Module) -> dict[str, Matrix]:
    """Every matrix of a model by name, in the order of its modules."""
    from kdbench.methods import _mpo as mpo

    uses = Counter(id(p) for layer in model.modules() for p in layer._parameters.values() if p is not None)
    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            name, path = "in_proj_weight", f"{path}.in_proj"
        elif isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            name = "weight"
        else:
            continue
        plain = layer._parameters.get(name)
        if (plain is not None and uses[id(plain)] == 1) or mpo.tensors_of(layer, name):
            found[path] = Matrix(layer, name)
    return found


def chosen(model: nn.Module, patterns: Sequence[str], role: str) -> dict[str, Matrix]:
    """The matrices that patterns name (`blocks.*.attn.qkv`, `*fc1`), or without patterns those of the body.

    The body of a network with linear layers (transformers, Mamba, MLPs) are these, less embeddings, pooler and
    classifier: convolutions of a hybrid are left alone. The body of any other network are its convolutions, less the
    first one and grouped ones.

    Raises:
        Refusal: a pattern names no matrix, or the model has no body.
    """
    found = matrices(model)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in found):
            hint = did_you_mean(pattern, found) or f"; it has {', '.join(found) or 'none'}"
            raise Refusal(f"no weight matrix of the {role} is called '{pattern}'{hint}")
    if patterns:
        return {path: m for path, m in found.items() if any(fnmatchcase(path, pattern) for pattern in patterns)}
    classifier = getattr(model, "kd_classifier", None)
    inside = {
        path: m
        for path, m in found.items()
        if path != classifier and not any(OUTSIDE.search(part) for part in path.split("."))
    }
    linear = {path: m for path, m in inside.items() if isinstance(m.layer, nn.Linear | nn.MultiheadAttention)}
    first = next((path for path, m in found.items() if not isinstance(m.layer, nn.Linear)), None)
    body = linear or {path: m for path, m in inside.items() if path != first and getattr(m.layer, "groups", 1) == 1}
    if not body:
        raise Refusal(f"the {role} has no inner weight matrices to decompose; name some with `layers`")
    return body


def pairs(
    student: Mapping[str, Matrix],
    teacher: Mapping[str, Matrix],
    layer_map: Sequence[str] = (),
    kind: Callable[[Matrix], Hashable] = lambda matrix: matrix.shape,
) -> dict[str, str]:
    """Student's matrix -> teacher's matrix of the same kind (by default: the same shape).

    Without `layer_map`, matrices at the same place of their layers (`blocks.0.mlp.fc1` and `blocks.7.mlp.fc1`; where
    the teacher has none there, matrices of the same kind anywhere) are mapped evenly: the i-th of m to the
    ceil(i n / m)-th of n, counted from 1: counted from 0, six of twelve are i <- 2i + 1, as in the paper's code.
    `layer_map` lists instead `student <- teacher`, paths of layers or of what they are in: `blocks.0 <- blocks.1`.

    Raises:
        Refusal: an entry of `layer_map` fits nothing, or joins matrices of different shapes.
    """
    if layer_map:
        return _mapped(student, teacher, layer_map, kind)
    found = {}
    for group in _groups(student, kind).values():
        there = _groups(teacher, kind)
        path = group[0]
        place = (_place(path), kind(student[path]))
        same = there.get(place) or [other for other, m in teacher.items() if kind(m) == place[1]]
        for i, path in enumerate(group):
            if same:
                found[path] = same[-(-(i + 1) * len(same) // len(group)) - 1]
    return {path: found[path] for path in student if path in found}


def parse_map(layer_map: Sequence[str]) -> list[tuple[str, str]]:
    """`blocks.0 <- blocks.1` -> ("blocks.0", "blocks.1").

    Raises:
        ValueError: with a sentence.
    """
    entries = []
    for entry in layer_map:
        learner, arrow, teacher = (part.strip() for part in entry.partition("<-"))
        if not (learner and arrow and teacher):
            raise ValueError(f"layer_map: '{entry}' is not `student <- teacher`, for example 'blocks.0 <- blocks.1'")
        entries.append((learner, teacher))
    return entries


def _mapped(
    student: Mapping[str, Matrix],
    teacher: Mapping[str, Matrix],
    layer_map: Sequence[str],
    kind: Callable[[Matrix], Hashable],
) -> dict[str, str]:
    found: dict[str, str] = {}
    for here, there in parse_map(layer_map):
        before = len(found)
        for path in student:
            if path != here and not path.startswith(f"{here}."):
                continue
            other = there + path[len(here) :]
            if other in teacher:
                if kind(student[path]) != kind(teacher[other]):
                    shapes = [shown(matrix.shape) for matrix in (student[path], teacher[other])]
                    raise Refusal(
                        f"layer_map: {path} ({shapes[0]}) and the teacher's {other} ({shapes[1]}) differ in shape"
                    )
                found[path] = other
        if len(found) == before:
            raise Refusal(f"layer_map: '{here} <- {there}' joins no matrices; the student's are {', '.join(student)}")
    return found


def _groups(found: Mapping[str, Matrix], kind: Callable[[Matrix], Hashable]) -> dict[tuple[str, Hashable], list[str]]:
    groups: dict[tuple[str, Hashable], list[str]] = {}
    for path, matrix in found.items():
        groups.setdefault((_place(path), kind(matrix)), []).append(path)
    return groups


def _place(path: str) -> str:
    """A path without the numbers of its layers: `blocks.3.mlp.fc1` -> `blocks.#.mlp.fc1`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", path)


def shown(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
