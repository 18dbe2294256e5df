"""Measurements that produce the figures in docs: timings and tuning trials."""
