"""The parts of `HPUThroughputMonitor`."""
