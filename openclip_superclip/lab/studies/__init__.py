"""Studies of several methods by paired seeds, and reports of finished runs."""
