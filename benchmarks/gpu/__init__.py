"""A GPU for minutes: pack what it needs, run the steps of the suites on it, unpack what came of them."""
