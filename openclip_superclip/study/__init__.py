"""Studies: runs of several methods by paired seeds, and whether their differences exclude zero."""
