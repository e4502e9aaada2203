"""`--executor slurm`: calls as jobs of Slurm, those that are launched together as one array, by submitit.

A job that is preempted, or reaches its time, ends its step, keeps its state and is queued again under its own number.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from kdbench.errors import UserError
from kdbench.run.remote import Call, Lost
from kdbench.run.worker import Event

ARRAY = 1000  # jobs in one array: Slurm's own limit is 1001 where nobody raised it
POLL = {"slurm": 5.0, "local": 0.5}  # seconds between looks at the queue
REQUEUES = 1000  # each goes on where the last one ended


@dataclass
class Slurm:
    """A Slurm cluster, seen from a machine that can submit to it.

    Args:
        folder: where the scripts and the output of jobs are kept, on the shared file system.
        options: of `sbatch`, by their long names; and `time`, `array_parallelism`, `cluster` (`local`: without Slurm,
            as processes of this machine, to try it).
    """

    folder: Path
    options: Mapping[str, str]
    device: str = "auto"
    _executor: Any = field(default=None, repr=False)
    _jobs: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def crowded(self) -> bool:
        return False  # a job has to itself what it asks for

    @property
    def cluster(self) -> str:
        return self.options.get("cluster", "slurm")

    def __enter__(self) -> Slurm:
        """Raises UserError: no submitit, no Slurm here, or options that are wrong."""
        try:
            import submitit
        except ImportError as error:
            raise UserError("--executor slurm: submitit is not installed: pip install 'kdbench[slurm]'") from error
        if self.cluster not in POLL:
            raise UserError(f"--slurm cluster={self.cluster}: expects slurm, or local")
        if self.cluster == "slurm" and (shutil.which("sbatch") is None or shutil.which("squeue") is None):
            raise UserError(
                "--executor slurm: there is no Slurm here (no sbatch): run it where jobs are submitted, or try it with "
                "--slurm cluster=local"
            )
        if "time" not in self.options:
            raise UserError("--executor slurm: expects how long a job may take, for example --slurm time=4:00:00")
        rest = {k: v or True for k, v in self.options.items() if k not in ("cluster", "time", "array_parallelism")}
        more: dict[str, Any] = {"slurm_array_parallelism": _whole(self.options, "array_parallelism", 256)}
        if self.cluster == "slurm":
            more |= {"slurm_additional_parameters": {"requeue": True, **rest}}
        self._executor = submitit.AutoExecutor(self.folder, self.cluster, slurm_max_num_timeout=REQUEUES)
        self._executor.update_parameters(name="kdbench", timeout_min=minutes(self.options["time"]), **more)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jobs = {}

    def launch(self, calls: Sequence[Call]) -> Sequence[Hashable]:
        """Raises UserError where Slurm refuses them, with its reason."""
        found: list[Any] = []
        for begin in range(0, len(calls), ARRAY):
            try:
                with self._executor.batch():
                    found += [self._executor.submit(Requeued(call)) for call in calls[begin : begin + ARRAY]]
            except Exception as error:  # submitit raises errors of several kinds, without a common one
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise UserError(f"sbatch: {lines[-1] if lines else type(error).__name__} (--slurm)") from error
        self._jobs |= {job.job_id: job for job in found}
        return [job.job_id for job in found]

    def ended(self, handles: Collection[Hashable]) -> Mapping[Hashable, list[Event] | Lost]:
        if not handles:
            return {}
        time.sleep(POLL[self.cluster])
        queued = self._queued()  # before the answers: a job that answers and leaves in between has answered
        answered = {handle for handle in handles if self._jobs[handle].paths.result_pickle.exists()}
        gone = set() if queued is None else {handle for handle in handles if handle not in queued} - answered
        return {handle: self._answer(self._jobs.pop(handle)) for handle in answered} | {
            handle: Lost(_said(self._jobs.pop(handle))) for handle in gone
        }

    def _answer(self, job: Any) -> list[Event] | Lost:
        try:
            answer: list[Event] = job.result()
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"-"}]
            return Lost(lines[-1] if lines else type(error).__name__)
        return answer

    def _queued(self) -> set[Hashable] | None:
        """Numbers of the jobs that wait or run, those that wait to be queued again included; None: Slurm is away."""
        if self.cluster != "slurm":
            return {handle for handle, job in self._jobs.items() if not job.done()}
        command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        return set(told.stdout.split())

    def cancel(self, handles: Collection[Hashable]) -> None:
        for handle in handles:
            if handle in self._jobs:
                self._jobs[handle].cancel(check=False)


@dataclass(frozen=True)
class Requeued:
    """A call that is queued again when its job is told to go: at the end of a step, where its state is whole."""

    call: Call

    def __call__(self) -> list[Event]:
        number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
        queue_again = signal.getsignal(number)  # submitit's: it leaves this process
        told = False

        def heard(number: int, frame: FrameType | None) -> None:
            nonlocal told
            told = True
            signal.raise_signal(signal.SIGINT)  # the training's own way to stop

        signal.signal(number, heard)
        try:
            return self.call()
        except KeyboardInterrupt:
            if told and callable(queue_again):
                queue_again(number, None)
            raise
        finally:
            signal.signal(number, queue_again)

    def checkpoint(self, *arguments: Any) -> Any:
        """For submitit: what is queued instead. The state is in the runs folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


def minutes(text: str) -> int:
    """Slurm's forms of a time: minutes, MM:SS, HH:MM:SS, DD-HH, DD-HH:MM, DD-HH:MM:SS; at least one minute.

    Raises:
        UserError: none of them.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise UserError(f"--slurm time={text}: expects minutes, HH:MM:SS or DAYS-HH:MM:SS")
    days, *parts = (int(part) if part else 0 for part in found.groups())
    if found[1] is None and found[4] is None:  # MM or MM:SS
        parts = [0, *parts[:2]]
    return max(1, days * 1440 + parts[0] * 60 + parts[1] + (parts[2] > 0))


def parse(text: str | None) -> dict[str, str]:
    """`partition=gpu,time=4:00:00,gres=gpu:1,exclusive`: a value that has commas itself is given in quotes.

    Raises:
        UserError: not such a list.
    """
    options: dict[str, str] = {}
    for part in re.findall(r"""(?:[^,"]|"[^"]*")+""", text or ""):
        name, _, value = part.partition("=")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name.strip()):
            raise UserError(f"--slurm {text}: expects options of sbatch such as partition=gpu,time=4:00:00")
        options[name.strip().replace("-", "_")] = value.strip().strip('"')
    return options


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--slurm {name}={value}: expects a number")
    return int(value)


def _said(job: Any) -> str:
    """Why a job left the queue without an answer, as far as its output tells."""
    for path in (job.paths.stderr, job.paths.stdout):
        if path.exists():
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
            return f"Slurm job {job.job_id}: {lines[-1].strip() if lines else 'no output'}"
    return f"Slurm job {job.job_id} left no output in {path.parent}: is --runs on a folder that all machines share?"
