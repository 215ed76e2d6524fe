"""The note's local derivatives as explicit arrays, and its remark on forward propagation as code."""
