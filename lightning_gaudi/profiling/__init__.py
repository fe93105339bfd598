"""The parts of `HPUProfiler`."""
