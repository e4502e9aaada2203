"""`--executor ray`: calls as Ray tasks, on a cluster that runs already or on this machine alone."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from kdbench import __version__
from kdbench.errors import UserError
from kdbench.run.remote import Call, Lost, report_missing
from kdbench.run.worker import Event

PROBE = 120.0  # seconds for a node to say what it sees


@dataclass
class Ray:
    """A Ray cluster. `gpus` is each call's share of a GPU; 0: calls train on CPUs, one each.

    Args:
        address: `auto`, `ray://HOST:PORT`, or None: $RAY_ADDRESS, else this machine.
        shared: paths that every node must see; folders among them are written to.
    """

    address: str | None = None
    gpus: float | None = None
    wanted: str = "auto"
    shared: Sequence[Path] = ()
    _ray: Any = field(default=None, repr=False)
    _began: bool = False

    @property
    def crowded(self) -> bool:
        return 0 < self.share < 1

    @property
    def share(self) -> float:
        return self.gpus or 0.0

    @property
    def device(self) -> str:
        return self.wanted if self.share else "cpu"

    def __enter__(self) -> Ray:
        """Raises UserError: no Ray here, no such cluster, or nodes that share no folder or have another kdbench."""
        try:
            import ray
        except ImportError as error:
            raise UserError("--executor ray: Ray is not installed: pip install 'kdbench[ray]'") from error
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    self.address,
                    log_to_driver=False,
                    **({} if (self.address or "").startswith("ray://") else {"logging_level": "ERROR"}),
                )
            except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
                said = str(error).strip().splitlines()
                raise UserError(f"--ray-address {self.address}: {said[0] if said else 'no such cluster'}") from error
            self._began = True
        try:
            self._settle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _settle(self) -> None:
        """What the cluster decides: whether GPUs are used. And whether every node can do the work."""
        here = bool(self._ray.cluster_resources().get("GPU"))
        if self.gpus is None:
            self.gpus = 1.0 if here and self.wanted != "cpu" else 0.0
        if self.gpus and not here:
            raise UserError(f"--gpus-per-job {self.gpus:g}: no node of the Ray cluster has a GPU; start one, or give 0")
        self._probe()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._began:
            self._ray.shutdown()
            self._began = False

    def launch(self, calls: Sequence[Call]) -> Sequence[Hashable]:
        """A node that dies is noticed by Ray; the call is then launched again by whoever launched it."""
        run = self._ray.remote(_run)
        handles: list[Hashable] = []
        for call in calls:
            gpus = 1.0 if call.last and self.crowded else self.share
            options = run.options(num_cpus=1, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD")
            handles.append(options.remote(call))
        return handles

    def ended(self, handles: Collection[Hashable]) -> Mapping[Hashable, list[Event] | Lost]:
        if not handles:
            return {}
        everything = list(handles)
        found, _ = self._ray.wait(everything, num_returns=1, timeout=1.0)
        if found:
            found, _ = self._ray.wait(everything, num_returns=len(everything), timeout=0)
        return {handle: self._answer(handle) for handle in found}

    def _answer(self, handle: Any) -> list[Event] | Lost:
        try:
            answer: list[Event] = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            user = isinstance(error, self._ray.exceptions.RayTaskError)  # a traceback, its error last
            told = lines[-1 if user else 0] if lines else type(error).__name__
            return Lost(told if user else told.partition(". ")[0])
        return answer

    def cancel(self, handles: Collection[Hashable]) -> None:
        for handle in handles:
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(handle, force=True)

    # before anything is done -----------------------------------------------------------------------------------------
    def _probe(self) -> None:
        """Every node that trains must see the shared folders and have this kdbench."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        marks = [path / f".seen-{uuid.uuid4().hex[:8]}" for path in self.shared if path.is_dir()]
        for mark in marks:
            mark.touch()
        try:
            look, asked = self._ray.remote(_look), {}
            paths = [str(path) for path in self.shared if not path.is_dir()] + [str(mark) for mark in marks]
            for node in self._ray.nodes():
                if node["Alive"] and node["Resources"].get("CPU"):
                    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    name = f"Ray node {node['NodeManagerAddress']}"
                    asked[look.options(num_cpus=0, scheduling_strategy=here, max_retries=1).remote(paths)] = name
            told = {name: self._heard(name, handle) for handle, name in asked.items()}
        finally:
            for mark in marks:
                mark.unlink(missing_ok=True)
        others = sorted(f"{name} has {version}" for name, (version, _) in told.items() if version != __version__)
        if others:
            raise UserError(f"--executor ray: here is kdbench {__version__}; {', '.join(others)}")
        lacking = [(name, sorted({str(Path(path).parent) if Path(path).name.startswith(".seen-") else path
                                  for path in missing})) for name, (_, missing) in told.items()]  # fmt: skip
        report_missing(lacking, "--executor ray")

    def _heard(self, name: str, handle: Any) -> tuple[str, list[str]]:
        try:
            told: tuple[str, list[str]] = self._ray.get(handle, timeout=PROBE)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__
            raise UserError(f"{name}: cannot run kdbench there ({reason})") from error
        return told


def _look(paths: list[str]) -> tuple[str, list[str]]:
    """There: the version of kdbench, and the paths that cannot be seen."""
    return __version__, [path for path in paths if not Path(path).exists()]


def _run(call: Call) -> list[Event]:
    return call()
