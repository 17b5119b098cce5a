"""Where tasks come from: the embedded suites and LIBERO's own."""
