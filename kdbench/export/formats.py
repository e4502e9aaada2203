"""The files that `kdbench export` writes and reads back: .safetensors, .pt2 and .onnx.

A .safetensors file holds weights alone, under the names of the module. The other two hold the whole graph, with the
preprocessing inside: pixels, uint8 (batch, channels, H, W), go in as they are stored, and logits (batch, classes) come
out, for any size of batch. They load without kdbench.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.models import operators, reason, weights

SUFFIXES = (".safetensors", ".pt2", ".onnx")
ONNX = ("onnx", "onnxscript", "onnxruntime")  # to write one, and to run it


class FromPixels(nn.Module):
    """Pixels as they are stored, uint8 (B, channels, H, W) -> logits (B, classes): normalisation, then the model."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        # The same two roundings as in training: see kdbench/data/augment.py.
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32) * self.get_buffer("scale") + self.get_buffer("shift")
        logits: Tensor = self.model(x)
        return logits


def check(suffix: str) -> None:
    """Raises UserError unless such a file can be written here."""
    if suffix not in SUFFIXES:
        raise UserError(f"models are exported to {', '.join(SUFFIXES)}, not to '{suffix or 'a name without suffix'}'")
    if suffix == ".onnx":
        for package in ONNX:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(f".onnx needs the package {package} ({error}); `uv sync --extra onnx`") from error


def write_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Every parameter and buffer of the state dict; shared ones are stored once under each name."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, path, {"format": "pt", **metadata})


def read_weights(path: Path, model: nn.Module) -> nn.Module:
    """The model with the weights of a file, whose names must all fit."""
    model.load_state_dict(load_file(path))
    return model.eval()


def on_cpu(model: FromPixels) -> FromPixels:
    """A copy whose scans run on any CPU, whatever backend they name."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(getattr(module, "scan_backend", None), str):
            module.scan_backend = "torch"  # type: ignore[assignment]
    return model


def graph(model: FromPixels, shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The model's graph on the CPU, in torch's own operations, for batches of any size.

    It is traced on black images, because torch keeps its example inputs in the file.

    Args:
        shape: (channels, H, W) of one image.

    Raises:
        UserError: torch cannot trace the model.
    """
    pixels = torch.zeros((2, *shape), dtype=torch.uint8)  # not one image: torch would take a batch of one as constant
    shapes = {"pixels": {0: torch.export.Dim("batch", min=1)}}
    try:
        with _quiet():
            program = torch.export.export(on_cpu(model), (pixels,), dynamic_shapes=shapes)
            program = program.run_decompositions(operators.table())
        for tensors in (program.state_dict, program.constants):  # torch saves what lies behind a view with it
            tensors.update(weights.compact(tensors))
    except Exception as error:
        raise UserError(
            f"torch.export cannot trace this {type(model.model).__name__} ({reason(error)[:200]}); its weights can be "
            f"exported to .safetensors"
        ) from error
    if own := {str(node.target) for node in program.graph.nodes if str(node.target).startswith("kdbench.")}:
        raise UserError(f"the graph holds {', '.join(sorted(own))}, which no other program can run; use .safetensors")
    for node in program.graph.nodes:
        for name in ("stack_trace", "custom"):  # paths of the machine that traced it
            node.meta.pop(name, None)
    return program


def write_program(path: Path, program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files=dict(metadata))


def read_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Pixels -> logits, both on the CPU."""
    with _quiet():
        return torch.export.load(path).module()


def write_onnx(path: Path, program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Raises UserError where ONNX has no counterpart of an operation."""
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes={"pixels": {0: "batch"}},  # only names the axis here
            )
            made.model.metadata_props.update(metadata)
            made.save(path, external_data=False)
    except Exception as error:
        raise UserError(f"torch.onnx cannot write this model ({reason(error)[:200]}); use .pt2") from error


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Pixels -> logits, both on the CPU, run by onnxruntime."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"pixels": pixels.cpu().numpy()})[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print, log and warn about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
