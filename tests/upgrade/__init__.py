"""States that earlier releases made, and what today's code does with them."""
