"""Teacher assistants, "Improved knowledge distillation via teacher assistant" (Mirzadeh et al., AAAI 2020).

    teacher -> ta -> ta2 -> ... -> student

Assistants are the pair's roles whose names begin with `ta`, in the suite's order. Each link is trained with the wrapped
method for `share` times the recipe's epochs, then frozen. All of it counts as training cost.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from kdbench.method import Method, Plan, Stage, Wrapper, knob
from kdbench.methods.kd import KD


@dataclass(frozen=True)
class Chain(Wrapper):
    """Bridge a wide gap in small steps."""

    over: Method = KD()
    share: float = knob(1.0, "epochs of each link, relative to the recipe's", low=0.1, high=2.0)

    def plan(self, roles: tuple[str, ...]) -> Plan:
        assistants = [role for role in roles if re.fullmatch(r"ta\d*", role)] or ["ta"]
        links = ["teacher", *assistants, "student"]
        pairs = itertools.pairwise(links)
        return Plan(tuple(Stage({learner: (teacher,)}, self.share) for teacher, learner in pairs))
