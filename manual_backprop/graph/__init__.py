"""The computational graph (G1): what the forward sweep computes from what, and what the backward sweep multiplies.

    forward_graph(objective)   squares are variables, circles operators; from x, W, b and y to L, s and J
    backward_graph(objective)  the gradients, from J back: the local derivative on every arrow, delta at every z

A `Graph` is plain data: vertices, arrows and boxes. It draws itself (`svg`, `png`, and by itself in a notebook) and
writes itself as Mermaid or DOT text. With parameters and a batch, it shows the shapes and norms of all that the sweeps
have as values.
"""

from manual_backprop.graph.backward import backward_graph as backward_graph
from manual_backprop.graph.forms import Graph as Graph
from manual_backprop.graph.forward import forward_graph as forward_graph
from manual_backprop.graph.model import Arrow as Arrow
from manual_backprop.graph.model import Box as Box
from manual_backprop.graph.model import Vertex as Vertex
