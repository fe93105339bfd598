"""What FSDP needs besides PyTorch: which modules to shard, and checkpoints of sharded state."""
