"""A real Ray cluster of two nodes on this machine, one of which is killed while it trains."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from commands import kdbench
from training import LITTLE

from kdbench.errors import UserError
from kdbench.run.on_ray import Ray, _look

# Long enough for a node to be killed in the middle: the digits are small.
LONG = LITTLE.replace("epochs: 2,", "epochs: 120,")


def told(root: Path) -> dict[str, object]:
    """What must be the same wherever it was trained."""
    records = [json.loads(path.read_text()) for path in sorted((root / "results").rglob("*.json"))]
    return {r["key"]: (r["status"], r["scores"], r["curves"], r["teacher"]["sha256"]) for r in records}


def test_shares_of_a_gpu() -> None:
    assert (Ray(gpus=0.5).crowded, Ray(gpus=0.5).device) == (True, "auto")
    assert (Ray(gpus=1.0, wanted="cuda").crowded, Ray(gpus=1.0, wanted="cuda").device) == (False, "cuda")
    assert (Ray(gpus=0).crowded, Ray(gpus=0, wanted="cuda").device) == (False, "cpu")


def test_a_node_says_what_it_does_not_see(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    assert _look([str(tmp_path / "there"), str(tmp_path / "not")])[1] == [str(tmp_path / "not")]


@pytest.mark.slow
def test_a_node_that_is_killed_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "s.yaml").write_text(LONG)
    assert kdbench(tmp_path, "run", "s.yaml", "--only", "p/kd", "--results", "here", "--runs", "h").returncode == 0
    students = set(told(tmp_path / "here"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    killed: list[str] = []
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

        def kill() -> None:
            """A node that trains a student, once an epoch of it is safe."""
            runs = tmp_path / "runs"
            while not (saved := [p for p in (runs / "checkpoints").glob("*.pt") if p.stem in students]):
                time.sleep(0.02)
            worker = json.loads((runs / "leases" / saved[0].stem).read_text())["pid"]
            raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
            (node,) = [node for node in nodes if node.all_processes["raylet"][0].process.pid == raylet]
            cluster.remove_node(node, allow_graceful=False)
            killed.append(saved[0].stem)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        options = ("--only", "p/kd", "--executor", "ray", "--ray-address", cluster.address)
        done = kdbench(tmp_path, "run", "s.yaml", *options)
        assert (done.returncode, len(killed)) == (0, 1), done.stderr
        assert "2 jobs trained" in done.stdout
        assert "the worker of p/kd seed" in done.stderr
        log = (tmp_path / "runs" / "logs" / f"{killed[0]}.txt").read_text()
        assert log.count(" on cpu") == 2  # it was begun twice
        assert log.count("epoch 1/") == 1  # and went on from its checkpoint
        assert told(tmp_path / "leaderboard") == told(tmp_path / "here")
        assert "2 were done already" in kdbench(tmp_path, "run", "s.yaml", *options).stdout
        with pytest.raises(UserError, match=r"no node of the Ray cluster has a GPU"), Ray(cluster.address, 0.5):
            pass
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
