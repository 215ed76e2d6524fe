"""Code that nobody here wrote, and that should be right: functions of JAX, and of libraries that are built on it."""
