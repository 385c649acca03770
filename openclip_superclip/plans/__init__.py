"""What is trained, in how many steps, and at what cost: recipes and plans."""
