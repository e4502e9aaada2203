"""Improved Knowledge Distillation via Teacher Assistant (TAKD).

S. I. Mirzadeh, M. Farajtabar, A. Li, N. Levine, A. Matsukawa, H. Ghasemzadeh. AAAI 2020.

    teacher -> ta -> ta2 -> ... -> student: one stage each, with the wrapped method

Assistants are the pair's roles `ta`, `ta2`, `ta3`, ..., in the order in which the pair lists them. A pair without one
is reported when the suite is loaded. Every stage takes `share` of the recipe's epochs, so one assistant doubles the
cost at the default (the paper's protocol); shares of 1 / (assistants + 1) keep the compute of a single training.
Default inside: KD with its own defaults. Deviations: the paper searches weight and temperature per pair; its code
averages KL over B * C.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from kdbench.method import Method, Paper, Plan, Stage, Wrapper, knob
from kdbench.methods.kd import KD


@dataclass(frozen=True)
class Chain(Wrapper):
    """Teacher assistants: the teacher teaches `ta`, which teaches the next, which teaches the student (2020)."""

    family = "several teachers"
    paper = Paper("Improved Knowledge Distillation via Teacher Assistant", "AAAI", 2020, "1902.03393")

    over: Method = KD()
    share: float = knob(1.0, "epochs of each stage, as a share of the recipe's", low=0.05, high=2.0)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        assistants = [role for role in roles if re.fullmatch(r"ta\d*", role)] or ["ta"]
        links = pairwise(("teacher", *assistants, "student"))
        return Plan(stages=tuple(Stage({learner: (teacher,)}, self.share) for teacher, learner in links))
