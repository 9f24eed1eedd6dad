"""What a checkpoint is: the names of its files, loading, saving, check sums, record, card, and how it is shared."""
