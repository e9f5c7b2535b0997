"""What watches a run: progress, monitors, figures and samples, TensorBoard. Each can be set to null."""
