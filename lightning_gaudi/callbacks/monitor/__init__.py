"""What `CompileMonitor` and the budgets of `lightning_gaudi.testing` are made of."""
