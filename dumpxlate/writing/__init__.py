"""Where a conversion's output goes, what it must be checked against, and how it goes on after an interruption."""
