"""What a run bears before it ends or starts again, where nothing else is asked for."""

STARTS_WITHOUT_A_SLICE = 3  # in a row
