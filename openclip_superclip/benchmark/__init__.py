"""The cost of the class head: time, memory and FLOPs, compared with alternatives."""
