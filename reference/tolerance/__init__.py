"""The largest difference of two right answers: measured for a whole program, derived for each equation."""
