"""Deep Mutual Learning (DML).

Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu. CVPR 2018.

    L_1 = CE(y, p_1) + KL(p_2 || p_1)        L_2 = CE(y, p_2) + KL(p_1 || p_2)        both at once, T = 1

The peer is the pair's role `peer`, or another student with initial weights of its own; the pair's teacher is not used.
The student is the answer. Default inside: KD with T = 1 and weights 1 / 1, the paper's loss; any other method works as
well. Deviation: both networks step on the same outputs (the paper updates one, forwards again, then the other).
"""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.method import Method, Paper, Plan, Stage, Wrapper
from kdbench.methods.kd import KD


@dataclass(frozen=True)
class Mutual(Wrapper):
    """Mutual learning: two students teach each other while they learn (Zhang et al. 2018)."""

    family = "online"
    paper = Paper("Deep Mutual Learning", "CVPR", 2018, "1706.00384")

    over: Method = KD(temperature=1.0, ce_weight=1.0, kd_weight=1.0)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        copies = {} if "peer" in roles else {"peer": "student"}
        return Plan(stages=(Stage({"student": ("peer",), "peer": ("student",)}),), copies=copies)
