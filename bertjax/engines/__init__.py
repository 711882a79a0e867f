"""A model directory, opened and ready to answer: the engines, their workers and their speed."""
