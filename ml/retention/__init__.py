"""What is deleted when its time has passed, and what is made ahead; `nightscore prune`."""
