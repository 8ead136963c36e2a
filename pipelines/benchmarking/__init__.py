"""Benchmarks: speeds beside a reference in the same run, what the machine allows, and how many listeners are served."""
