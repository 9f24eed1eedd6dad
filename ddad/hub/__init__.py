"""What accompanies a checkpoint when it is shared."""
