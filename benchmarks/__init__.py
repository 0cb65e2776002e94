"""Side-by-side timings of lockref and its peers: run `python -m benchmarks` from the repository root."""
