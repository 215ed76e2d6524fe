"""The cost of reading one sweep, each quantity beside its usual way by automatic differentiation."""
