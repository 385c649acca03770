"""Studies of several methods by paired seeds."""
