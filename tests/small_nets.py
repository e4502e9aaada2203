"""The tiny networks and the problem of `kdbench.testing`, by short names."""

from kdbench.models.taps import Tap as Tap
from kdbench.testing.nets import CHANNELS as CHANNELS
from kdbench.testing.nets import CLASSES as CLASSES
from kdbench.testing.nets import SIZE as SIZE
from kdbench.testing.nets import STUDENTS as STUDENTS
from kdbench.testing.nets import Net as Net
from kdbench.testing.nets import maps as maps
from kdbench.testing.nets import seeded as seeded
from kdbench.testing.nets import teacher as teacher
from kdbench.testing.nets import tokens as tokens
from kdbench.testing.nets import vectors as vectors
from kdbench.testing.problem import EXAMPLES as EXAMPLES
from kdbench.testing.problem import Problem as Problem
from kdbench.testing.problem import batch as batch
from kdbench.testing.problem import profile as profile
