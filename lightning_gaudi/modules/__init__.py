"""LightningModules around models of other libraries."""
