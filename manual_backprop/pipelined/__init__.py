"""Pipeline parallelism: the blocks of a `Repeat` on several devices, by a schedule that a split backward allows."""
