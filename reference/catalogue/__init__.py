"""The networks that `manual-backprop check` proves and breaks, their data, and the published examples."""
