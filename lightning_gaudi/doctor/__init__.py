"""What is right and wrong with a machine: pure checks over `runtime.facts`, and their rendering."""
