"""What the planner hands back: the plan, its file, its words and numbers."""
