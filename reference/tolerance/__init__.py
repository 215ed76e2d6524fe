"""How far two right answers may differ: measured for a whole program, derived for each equation."""
