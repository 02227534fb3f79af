"""The worlds of the planning benchmarks, as functions of batched arrays."""
