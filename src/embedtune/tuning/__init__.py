"""The search for better settings: what is tried, one training a trial, what is kept, what came of it."""
