"""How fast engines are, and how work is shared out by it."""
