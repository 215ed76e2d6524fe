"""Composites: networks made of layers and other composites. Each says how its parts are joined, and nothing else."""

from manual_backprop.network.composites import Parallel as Parallel
from manual_backprop.network.composites import Residual as Residual
from manual_backprop.network.composites import Serial as Serial
from manual_backprop.network.composites import mlp as mlp
from manual_backprop.network.gpt import gpt as gpt
from manual_backprop.network.scanned import Repeat as Repeat
from manual_backprop.network.scanned import Tied as Tied
from manual_backprop.network.tied_readout import Readout as Readout
from manual_backprop.network.tied_readout import TiedReadout as TiedReadout
