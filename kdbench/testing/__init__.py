"""Contract tests to inherit: of a method, a model, a task, a data set. They need pytest.

    import kdbench.testing

    class TestMine(kdbench.testing.MethodContract):
        method = Mine()

kdbench's own tests are these classes, over every name that it finds.
"""

from __future__ import annotations

try:
    import pytest
except ImportError as error:
    raise ImportError("kdbench.testing needs pytest, which is not installed: pip install 'kdbench[testing]'") from error

for _module in ("contract", "data_contract", "declarations", "method_contract", "model_contract", "task_contract"):
    pytest.register_assert_rewrite(f"kdbench.testing.{_module}")

from kdbench.testing.contract import Contract  # noqa: E402 (pytest rewrites what is imported after it is told)
from kdbench.testing.data_contract import DataContract  # noqa: E402
from kdbench.testing.method_contract import MethodContract, VanishesWhenEqual  # noqa: E402
from kdbench.testing.model_contract import ModelContract  # noqa: E402
from kdbench.testing.problem import Problem, batch  # noqa: E402
from kdbench.testing.task_contract import TaskContract  # noqa: E402

__all__ = [
    "Contract", "DataContract", "MethodContract", "ModelContract", "Problem", "TaskContract", "VanishesWhenEqual",
    "batch",
]  # fmt: skip
