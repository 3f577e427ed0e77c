"""Maths core of representation-based exploration: projection, covariance, elliptical bonus. Imports nothing of ours."""
