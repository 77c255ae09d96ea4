"""The parts of tests/bench/on_a_gpu.py."""
