"""kdbench: a declarative, fair benchmark suite for knowledge distillation in PyTorch."""

__version__ = "0.1.0"
