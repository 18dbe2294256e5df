"""What a run costs on a TPU slice that is not here, by its own compiler."""
