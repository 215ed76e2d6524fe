"""The computational graph (G1) of the forward sweep, and the graph of the backward sweep's products.

    forward_graph(objective)   squares are variables, circles operators; from x, W, b and y to L, s and J
    backward_graph(objective)  the gradients, from J back: the local derivative on every arrow, delta at every z

A `Graph` is plain data: vertices, arrows and boxes. It can be drawn (`svg`, `png`, and automatically in a notebook)
and written as Mermaid or DOT text. With parameters and a batch, it shows the shapes and norms of the sweeps' values.
"""

from manual_backprop.graph.backward import backward_graph as backward_graph
from manual_backprop.graph.forms import Graph as Graph
from manual_backprop.graph.forward import forward_graph as forward_graph
from manual_backprop.graph.model import Arrow as Arrow
from manual_backprop.graph.model import Box as Box
from manual_backprop.graph.model import Vertex as Vertex
