"""kdbench beside a peer: images per second of KD with torchdistill, with a bare loop and with our engine.

    uv run --with torchdistill python benchmarks/peers.py [--device cuda --steps 200] [--write]

All three train the same pair on the same CIFAR-shaped images with crop and flip, KD (temperature 4, 0.1 and 0.9) and
SGD, in fp32; the loops take turns, and a ratio is the median over the rounds. torchdistill runs as its examples do:
torchvision's transforms on PIL images, a DataLoader, its DistillationBox with KDLoss, forward hooks and all.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable

import torch
from engine_speed import BATCH, bare, data, engine
from tables import machine, section, write
from torchvision import transforms

from kdbench import models
from kdbench.data import DataSet

PAIRS = (("resnet56", "resnet20"), ("resnet20", "resnet8"))


class Pictures(torch.utils.data.Dataset):
    """What torchvision's CIFAR10 is: PIL images with their labels."""

    def __init__(self, loaded: DataSet) -> None:
        to_picture = transforms.ToPILImage()
        self.pictures = [to_picture(image) for image in loaded.train.images.cpu()]
        self.labels = loaded.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(loaded.train.mean, loaded.train.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def torchdistill(pair: tuple[str, str], device: torch.device, loaded: DataSet, steps: int, workers: int) -> float:
    """Seconds of `steps` optimiser steps by torchdistill's DistillationBox."""
    from torchdistill.core.distillation import DistillationBox

    side = {"forward_proc": "forward_batch_only", "sequential": []}
    path = {"student_module_path": ".", "student_module_io": "output"}
    path |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    term = {"key": "KDLoss", "kwargs": {**path, "temperature": 4.0, "alpha": 0.1, "reduction": "batchmean"}}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": workers, "drop_last": True, "pin_memory": workers > 0},
        },
        "val_data_loader": {},
        "teacher": {**side, "requires_grad": False},
        "student": dict(side),
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": term, "weight": 1.0}}},
        },
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
    }
    teacher, student = (plain(name, device) for name in pair)
    box = DistillationBox(teacher, student, {"train": Pictures(loaded)}, config, device, None, False, 1.0)
    student.train()
    teacher.eval()
    start = time.perf_counter()
    for x, targets, extra in box.train_data_loader:
        loss = box.forward_process(x.to(device), targets.to(device), extra)
        box.post_forward_process(loss)
    loss.item()
    seconds = time.perf_counter() - start
    box.clean_modules()
    return seconds


def plain(name: str, device: torch.device) -> torch.nn.Module:
    """A network as it is built, in torch's default layout."""
    torch.manual_seed(0)
    return models.build(name, {}, classes=10, channels=3, size=32).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0, help="of torchdistill's DataLoader")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    loaded, rows = data(device, options.steps), []
    for pair in PAIRS:
        loops: dict[str, Callable[[DataSet, int], float]] = {
            "kdbench": lambda held, steps, pair=pair: engine("kd", device, held, steps, pair, "fp32"),
            "bare": lambda held, steps, pair=pair: bare("kd", device, held, steps, pair, "fp32"),
            "torchdistill": lambda held, steps, pair=pair: torchdistill(pair, device, held, steps, options.workers),
        }
        for loop in loops.values():
            loop(data(device, 2), 2)  # warm up
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(options.rounds):
            for name, loop in loops.items():
                seconds[name].append(loop(loaded, options.steps))
        row: dict[str, object] = {"pair": " -> ".join(pair)}
        row["kdbench, images/s"] = round(options.steps * BATCH / statistics.median(seconds["kdbench"]))
        for name in ("bare", "torchdistill"):
            ratios = [other / own for other, own in zip(seconds[name], seconds["kdbench"], strict=True)]
            row[f"over {name}"] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(row)
        print(row)
    about = (
        f"`benchmarks/peers.py`: KD, batch {BATCH}, fp32, crop and flip, {options.steps} steps a round, "
        f"n = {options.rounds} rounds in turns; {machine(device)}. Images per second as a ratio, median (range)."
    )
    text = section("Peers", about, rows)
    if options.write:
        write("Peers", text)
    print(text)


if __name__ == "__main__":
    main()
