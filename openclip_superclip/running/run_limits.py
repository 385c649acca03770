"""What a run bears before it ends or starts again, where nothing else is asked for."""

STALL_MINUTES = 30.0  # without a step
UNREADABLE_MAX = 0.01  # of a slice's shards, and of its samples
STARTS_WITHOUT_A_SLICE = 3  # in a row
