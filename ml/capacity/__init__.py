"""What so many images a night need."""
