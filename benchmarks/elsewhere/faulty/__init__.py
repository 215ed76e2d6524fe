"""Three subtle faults in the derivative of each of 40 rules and functions, and which judge sees them."""
