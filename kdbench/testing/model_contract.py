"""What every model promises, as tests to inherit.

class TestMine(kdbench.testing.ModelContract):
    model = "./net.py:build"  # as in a suite: a file's function, an installed package's or kdbench's own name
    folder = Path(__file__).parent
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.errors import UserError
from kdbench.models import size
from kdbench.models.taps import Tapped
from kdbench.testing.contract import Contract, explained


class ModelContract(Contract):
    """The contract of models: `model = "name"`, or `cases = {"small": "name", ...}`."""

    subject = "model"
    model: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}  # of the model, in every case
    folder: ClassVar[Path] = Path()  # where `./net.py` lies
    classes: ClassVar[int] = 10
    maps: ClassVar[bool] = False  # it answers a map of rows for each image, (B, classes, H, W)
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)  # (channels, H, H) of the images

    @classmethod
    def unfit(cls, value: Any) -> str:
        return "" if isinstance(value, str) else f"{value!r} is no model's name, as a suite gives it"

    def made(self, model: str, seed: int = 0, **changes: int) -> nn.Module:
        """The model with the weights of a seed."""
        given: dict[str, Any] = {"classes": self.classes, "channels": self.shape[0], "size": self.shape[1]} | changes
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return models.build(model, self.options, folder=self.folder, **given)

    def images(self, count: int = 4) -> Tensor:
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(0))

    def fits(self, rows: Tensor, count: int, classes: int) -> bool:
        return tuple(rows.shape[:2]) == (count, classes) and rows.ndim == (4 if self.maps else 2)

    # answers ---------------------------------------------------------------------------------------------------------
    def test_it_answers_rows_and_learns(self, model: str) -> None:
        """Logits (B, classes) while training, and a gradient for every parameter."""
        made = self.made(model)
        rows = made.train()(self.images())
        assert self.fits(rows, 4, self.classes)
        rows.logsumexp(1).sum().backward()
        assert not [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None]
        assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)

    def test_an_image_is_answered_alone_and_alike(self, model: str) -> None:
        """In eval mode: no image depends on its neighbours, no call on those before, no layout of memory matters."""
        made, x = self.made(model).eval(), self.images()
        with torch.inference_mode():
            rows = made(x)
            assert rows.isfinite().all()
            assert torch.equal(made(x), rows)
            torch.testing.assert_close(torch.cat([made(one) for one in x.split(1)]), rows, rtol=1e-3, atol=1e-4)
            made.to(memory_format=torch.channels_last)
            last = made(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, rows, rtol=1e-3, atol=1e-4)

    def test_the_seed_decides_the_weights(self, model: str) -> None:
        one, same, other = (self.made(model, seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert not all(torch.equal(value, other[name]) for name, value in one.items())

    def test_its_weights_can_be_kept_and_copied(self, model: str) -> None:
        one, other, x = self.made(model, 1), self.made(model, 2).eval(), self.images()
        one.train()(x)  # running statistics move
        other.load_state_dict(copy.deepcopy(one.eval().state_dict()))
        with torch.inference_mode():
            rows = one(x)
            assert torch.equal(other(x), rows)
            assert torch.equal(copy.deepcopy(one)(x), rows)

    def test_other_images_and_classes_work_or_are_refused(self, model: str) -> None:
        """One channel, seven classes; a size that the model does not take is a sentence."""
        channels, side = 1, self.shape[1]
        try:
            made = self.made(model, classes=7, channels=channels).eval()
        except UserError as refused:
            explained(refused)
            return
        with torch.inference_mode():
            assert self.fits(made(torch.zeros(2, channels, side, side)), 2, 7)

    # taps ------------------------------------------------------------------------------------------------------------
    def test_its_taps_are_blocks_in_order_and_the_pooled_feature(self, model: str) -> None:
        if self.maps:
            pytest.skip("a network of maps has no pooled feature")
        made = self.made(model)
        names, heard = list(made.kd_taps), []  # type: ignore[arg-type]
        assert names == [*(f"block{i + 1}" for i in range(len(names) - 1)), "pooled"]
        for name, tap in made.kd_taps.items():  # type: ignore[operator, union-attr]
            made.get_submodule(tap.path).register_forward_hook(lambda *_, name=name: heard.append(name))
        out = Tapped(made.eval(), "student", ("*",))(self.images())
        assert sorted(heard, key=names.index) == heard, "blocks are numbered in the order of the forward pass"
        assert all(len(value) == 4 and value.ndim > 1 for value in out.taps.values())
        assert out.pooled.ndim == 2

    def test_the_classifier_makes_rows_of_the_pooled_feature(self, model: str) -> None:
        if self.maps:
            pytest.skip("a network of maps has no pooled feature")
        made = self.made(model).eval()
        classifier = made.get_submodule(str(made.kd_classifier))
        if not isinstance(classifier, nn.Linear):
            pytest.skip("its classifier is no linear layer")
        out = Tapped(made, "student", ("pooled",))(self.images())
        torch.testing.assert_close(classifier(out.pooled), out.rows)

    def test_its_size_can_be_counted(self, model: str) -> None:
        made = self.made(model)
        parameters, macs = size.count(made, self.shape)
        assert parameters == sum(p.numel() for p in made.parameters())
        assert macs > 0
