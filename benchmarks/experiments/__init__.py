"""Published claims, each measured on real data with its control; run `python -m benchmarks.experiments`.

A claim is a function that returns a `Finding`; a module holds a family of them. Importing this package registers
them all in `CLAIMS`, and tests/project/test_experiments.py asserts the same functions.
"""

from benchmarks.experiments import alignment as alignment
from benchmarks.experiments import curvature as curvature
from benchmarks.experiments import examples as examples
from benchmarks.experiments import forward as forward
from benchmarks.experiments.claims import CLAIMS as CLAIMS
from benchmarks.experiments.claims import Bound as Bound
from benchmarks.experiments.claims import Claim as Claim
from benchmarks.experiments.claims import Finding as Finding
