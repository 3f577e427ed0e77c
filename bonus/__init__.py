"""Maths core of exploration: bonuses, projection, covariance, selection."""
