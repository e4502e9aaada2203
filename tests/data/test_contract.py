"""The contract that every data set inherits: embedded ones as they are, others as official files in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_layouts import make_cifar, make_folder, make_mnist

from kdbench.data import found
from kdbench.testing import DataContract

EMBEDDED = [name for name, status in found(Path()).items() if status == "embedded"]


class TestEmbedded(DataContract):
    cases = dict(zip(EMBEDDED, EMBEDDED, strict=True))  # noqa: RUF012


class Files(DataContract):
    """Files are written once; `val` is as small as they are."""

    val = 10

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def files(cls, tmp_path_factory) -> None:
        cls.root = tmp_path_factory.mktemp("data")
        cls.write(cls.root)

    @classmethod
    def write(cls, root: Path) -> None:
        raise NotImplementedError


class TestMnist(Files):
    data = "mnist"

    @classmethod
    def write(cls, root: Path) -> None:
        make_mnist(root)


class TestCifar(Files):
    data = "cifar10"

    @classmethod
    def write(cls, root: Path) -> None:
        make_cifar(root, "cifar10", "bin")


class TestFolder(Files):
    data = "folder"
    options = {"path": "tree", "size": 16}  # noqa: RUF012

    @classmethod
    def write(cls, root: Path) -> None:
        make_folder(root)
