"""The contract, run on whatever HPU there is: ``lightning-gaudi selftest``."""
