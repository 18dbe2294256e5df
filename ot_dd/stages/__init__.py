"""The pipeline's stages: prepare, sample, refine, relabel, train, report.

Each is a function of (config, work directory, named inputs) with a typed result; the
work directory remembers what is done. `ot_dd.distill` calls them in order.
"""
