"""Activation functions, with what their backward needs computed in one go."""
