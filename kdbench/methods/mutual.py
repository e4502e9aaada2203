"""Deep mutual learning (Zhang, Xiang, Hospedales & Lu, CVPR 2018).

    each of two networks: L = CE + KL(p_peer || p_own), both trained from scratch in one stage, T = 1

The peer is the pair's role `peer`, else a second student with initial weights of its own; the pair's teacher is not
used. What the peer says is a constant to the other network. The student is deployed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.method import Method, Plan, Stage, Wrapper
from kdbench.methods.kd import KD


@dataclass(frozen=True)
class Mutual(Wrapper):
    """Two students teach each other."""

    over: Method = KD(temperature=1.0, ce_weight=1.0, kd_weight=1.0)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        stage = Stage({"student": ("peer",), "peer": ("student",)})
        return Plan((stage,), copies={} if "peer" in roles else {"peer": "student"})
