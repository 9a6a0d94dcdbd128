"""What the commands share: their arguments, how they run, and what they build of them."""
