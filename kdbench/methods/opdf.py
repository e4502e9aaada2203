"""OPDF: the student is over-parameterised by tensor decomposition while it is distilled.

Y.-L. Zhan, Z.-Y. Lu, H. Sun, Z.-F. Gao. Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge
Distillation. NeurIPS 2024 (arXiv 2411.06448).

    W = contraction of T(1), ..., T(n), all trained;    L = L_over + w mean over matrices of L_Aux
    L_Aux = (1 / #aux) sum over auxiliary k of mean (T_s(k) - T_t(k))^2                                      (Eq. 5)

T_t are the tensors of the same decomposition of a teacher's matrix of the same shape; auxiliary are all but the middle
one. After training the chains are contracted: the deployed student is the plain one. Variants are knobs: `scale: 0,
align: false` is the paper's "+SVD", `align: false` its "MPO", the defaults "OPDF"; `gauge: teacher` is ours.

Deviations. The released code reads both sides of L_Aux detached, so that it has no gradient, or comments it out: what
it trains is `align: false`. Its weight is 1e-4 on a sum over k; here it is on the mean of Eq. 5. Signs of the
decomposition are fixed (see _mpo.py), without which two decompositions of one matrix differ. Weight decay acts
on each of n factors and so n times on W: by default there is none. Of several teachers, the first is aligned with.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kdbench.batch import Batch, Out, Profile
from kdbench.lazy import F, nn, torch
from kdbench.method import Method, Paper, Prepared, Rates, Refusal, Wrapper, knob
from kdbench.methods._matrices import Matrix, chosen, matrices, pairs, parse_map, shown
from kdbench.methods._mpo_shapes import Shape, automatic, centred, parse
from kdbench.methods.kd import KD

if TYPE_CHECKING:
    from torch import Tensor


def alignment_loss(student: Sequence[Sequence[Tensor]], teacher: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over matrices of the mean over auxiliary tensors of the mean squared difference (Eq. 5); scalar.

    Both arguments list, for each matrix, its auxiliary tensors.
    """
    terms = [
        torch.stack([F.mse_loss(ours, theirs) for ours, theirs in zip(own, other, strict=True)]).mean()
        for own, other in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class OPDF(Wrapper):
    """Train tensor factors instead of weight matrices, drawn to the teacher's (Zhan et al., NeurIPS 2024)."""

    family = "weights"
    paper = Paper(
        "Over-parameterized Student Model via Tensor Decomposition Boosted Knowledge Distillation",
        "NeurIPS",
        2024,
        "2411.06448",
    )

    extends: ClassVar[tuple[str, ...]] = ("loss",)

    over: Method = KD()
    scale: int = knob(1, "tensors between the two ends of a chain; 0 is a singular value decomposition", low=0, high=16)
    align: bool = knob(True, "draw auxiliary tensors to the teacher's")
    weight: float = knob(1e-4, "of the alignment", low=1e-8, high=1e4, log=True)
    gauge: str = knob("balanced", "teacher: start with the teacher's outer tensors", choices=("balanced", "teacher"))
    layers: tuple[str, ...] = knob(
        (), "patterns of paths, `blocks.*.attn.qkv`; none: all but embeddings and classifier"
    )
    shapes: tuple[str, ...] = knob((), "`32,1,24 x 64,1,48`, each for all matrices of that size; others are automatic")
    layer_map: tuple[str, ...] = knob((), "`blocks.0 <- blocks.1`: student's and teacher's layers; none: evenly spaced")
    rank: int = knob(0, "of all bonds at most; 0: full, the student starts as it was", low=0)
    factor_lr: float = knob(1.0, "learning rate of the factors, relative to the recipe's", low=1e-3, high=10, log=True)
    factor_decay: float = knob(0.0, "weight decay of the factors, relative to the recipe's", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        parse_map(self.layer_map)
        sizes = [parse(text).matrix for text in self.shapes]
        for size in sizes:
            if sizes.count(size) > 1:
                raise ValueError(f"shapes: {shown(size)} is given twice")
        if self.gauge == "teacher":
            if self.rank:
                raise ValueError("gauge: teacher keeps full ranks; remove `rank`")
            for text in self.shapes:
                if not parse(text).square_edges:
                    raise ValueError(
                        f"gauge: teacher needs a larger middle than '{text}' has: the tensors left of it, and those "
                        f"right of it, must be square together"
                    )

    # model -----------------------------------------------------------------------------------------------------------
    def prepare(self, model: nn.Module, role: str, teachers: Mapping[str, nn.Module]) -> Prepared:
        from kdbench.methods import _mpo as mpo

        inner = Prepared.of(self.over.prepare(model, role, teachers))
        model = inner.model
        factors: set[nn.Parameter] = set()
        student = chosen(model, self.layers, role)
        sizes = {matrix.shape for matrix in student.values()}
        for text in self.shapes:
            if self.gauge == "balanced" and parse(text).matrix not in sizes:
                has = ", ".join(sorted(map(shown, sizes)))
                raise Refusal(f"no matrix of the {role} has the size of shape '{text}'; it has {has}")
        edges = self._edges(student, role, teachers) if self.gauge == "teacher" else {}
        for path, matrix in student.items():
            try:
                shape = self._shape(matrix)
                tensors = mpo.register(matrix.layer, matrix.name, shape, self.rank or None, edges.get(path))
            except ValueError as error:
                raise Refusal(f"{path} of the {role} cannot be decomposed: {error}") from error
            except torch.linalg.LinAlgError as error:
                raise Refusal(
                    f"{path} of the {role} cannot take the teacher's tensors ({error}): use gauge: balanced"
                ) from error
            factors.update(tensors)
        rates = Rates(self.factor_lr, self.factor_decay)
        names = {name: parameter in factors for name, parameter in model.named_parameters()}
        kept = {pattern: value for pattern, value in inner.groups.items() if fnmatch.filter(names, pattern)}
        return Prepared(model, kept | {name: rates for name, ours in names.items() if ours})

    def deploy(self, model: nn.Module, heads: nn.Module) -> nn.Module:
        from kdbench.methods import _mpo as mpo

        dense = mpo.fold(model).to(memory_format=torch.channels_last)  # as the engine lays out every learner
        return self.over.deploy(dense, heads.get_submodule("over"))

    # signal ----------------------------------------------------------------------------------------------------------
    def heads(self, learner: Profile, teachers: Mapping[str, Profile]) -> nn.Module | Prepared:
        """`over`'s heads, and how to come by the tensors to compare: nothing of it is trained or saved."""
        from kdbench.methods import _mpo as mpo

        inner = Prepared.of(self.over.heads(learner, teachers))
        heads = mpo.Heads(inner.model)
        if self.align:
            student = chosen(learner.model, self.layers, learner.role)
            models = {role: profile.model for role, profile in teachers.items()}
            heads.compared = self._compared(student, *self._pairs(student, learner.role, models), heads)
        return Prepared(heads, inner.within("over")) if inner.groups else heads

    def loss(self, learner: Out, teachers: Mapping[str, Out], batch: Batch, heads: nn.Module) -> dict[str, Tensor]:
        terms = self.over.loss(learner, teachers, batch, heads.get_submodule("over"))
        if not self.align:
            return terms
        compared: Any = heads.compared
        return {**terms, "opdf": self.weight * alignment_loss(*compared())}

    # which tensors ---------------------------------------------------------------------------------------------------
    def _shape(self, matrix: Matrix) -> Shape:
        for text in self.shapes:
            if (shape := parse(text)).matrix == matrix.shape:
                return shape
        return centred(*matrix.shape) if self.gauge == "teacher" else automatic(*matrix.shape, self.scale)

    def _kind(self, matrix: Matrix) -> Hashable:
        """What two matrices must share to be compared: their shape; in the teacher's gauge the auxiliary tensors'."""
        if self.gauge == "balanced":
            return matrix.shape
        shape = self._shape(matrix)
        return tuple(shape.tensors()[k] for k in shape.auxiliary)

    def _pairs(
        self, student: Mapping[str, Matrix], role: str, teachers: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Matrix], dict[str, str]]:
        """The first teacher's matrices, and student's -> teacher's."""
        if not teachers:
            raise Refusal(f"the {role} has no teacher whose tensors it could be aligned with; set `align: false`")
        name, model = next(iter(teachers.items()))
        teacher = matrices(model)
        found = pairs(student, teacher, self.layer_map, self._kind)
        if not found:
            has, lacks = (
                ", ".join(dict.fromkeys(shown(matrix.shape) for matrix in side.values())) or "none"
                for side in (student, teacher)
            )
            raise Refusal(
                f"no matrix of the {role} ({has}) can be aligned with one of the {name} ({lacks}), since none has the "
                f"same shape; set `align: false`, or take a {name} of the same width"
            )
        return teacher, found

    def _edges(
        self, student: Mapping[str, Matrix], role: str, teachers: Mapping[str, nn.Module]
    ) -> dict[str, dict[int, Tensor]]:
        """The teacher's auxiliary tensors by position, for each matrix of the student that has a partner."""
        from kdbench.methods import _mpo as mpo

        teacher, found = self._pairs(student, role, teachers)
        edges = {}
        for path, other in found.items():
            matrix = teacher[other]
            shape = self._shape(matrix)
            tensors = mpo.decompose(matrix.weight.reshape(matrix.shape), shape)
            edges[path] = {k: tensors[k] for k in shape.auxiliary}
        return edges

    def _compared(
        self, student: Mapping[str, Matrix], teacher: Mapping[str, Matrix], found: Mapping[str, str], heads: nn.Module
    ) -> Callable[[], tuple[list[list[Tensor]], list[list[Tensor]]]]:
        """A function that lists, for each pair, the live auxiliary tensors of the student and the teacher's, detached.

        A frozen teacher's are buffers of `heads`; those of a peer that is learning are its own live ones. A function,
        because a deep copy of the heads (for `deploy`) then takes no copy of the student along.
        """
        from kdbench.methods import _mpo as mpo

        sides: list[tuple[list[Tensor], list[Tensor | str]]] = []
        for number, (path, other) in enumerate(found.items()):
            here, there = student[path], teacher[other]
            shape = self._shape(there)
            own = mpo.tensors_of(here.layer, here.name) or ()
            peer = mpo.tensors_of(there.layer, there.name)
            if peer and peer[0].requires_grad:
                theirs: list[Tensor | str] = [peer[k] for k in shape.auxiliary]
            else:
                tensors = mpo.decompose(there.weight.reshape(there.shape), shape, self.rank or None)
                names = {k: f"matrix{number}_tensor{k}" for k in shape.auxiliary}
                for k, name in names.items():
                    heads.register_buffer(name, tensors[k].flatten(1, 2).to(own[k]), persistent=False)
                theirs = list(names.values())
            sides.append(([own[k] for k in shape.auxiliary], theirs))

        def compared() -> tuple[list[list[Tensor]], list[list[Tensor]]]:
            targets = [
                [heads.get_buffer(tensor) if isinstance(tensor, str) else tensor.detach() for tensor in theirs]
                for _, theirs in sides
            ]
            return [own for own, _ in sides], targets

        return compared
