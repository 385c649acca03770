"""What the class head costs: time, memory and FLOPs, beside what it is compared with."""
