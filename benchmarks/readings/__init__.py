"""The cost of every reading of one sweep, against the usual way by automatic differentiation."""
